"""What captures cost a training that keeps all cores busy: 35 million parameters, 420 MB of state.

Blocks of steps with and without walrecover take turns, in one process and on one model: once with
each step kept in memory, once with a snapshot to disk every ten steps, both through the arena.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import walrecover
from tests.bench.measure import Row, at_most, sample, show
from walrecover.session.settings import MEMORY_EVERY

WIDTH, BATCH, BLOCK, ROUNDS = 3400, 48, 10, 12


def training() -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[], torch.Tensor]]:
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(3)))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(BATCH, WIDTH)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return model, optimizer, step


def blocks(folder: Path, every: str) -> tuple[list[float], list[float]]:
    """Seconds of each block's steps, with walrecover and bare; the first of each is left out."""
    model, optimizer, step = training()
    run = walrecover.attach(
        name="bench", dir=str(folder), every=every, model=model, optimizer=optimizer
    )
    steps: Iterator[int] = iter(run.loop(range(10**9)))
    next(steps)
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(BLOCK):
            run.step(loss=step())
            next(steps)
        ours.append(time.perf_counter() - began)
        run._saver.drain()  # what goes on behind the last steps is not the next block's
        began = time.perf_counter()
        for _ in range(BLOCK):
            step()
        bare.append(time.perf_counter() - began)
    run._close()
    return ours[1:], bare[1:]


def rows() -> list[Row]:
    torch.set_num_threads(os.cpu_count() or 1)
    found = []
    for what, every, bound in (
        ("ten steps, each kept in memory, beside ten bare ones", "100000steps", 1 / 0.90),
        ("ten steps with a snapshot, beside ten bare ones", f"{BLOCK}steps", 1 / 0.97),
    ):
        os.environ[MEMORY_EVERY] = "1step" if bound > 1.1 else "100000steps"
        with tempfile.TemporaryDirectory() as name:
            ours, bare = blocks(Path(name), every)
        found.append(at_most(what, sample(ours), sample(bare), bound))
    del os.environ[MEMORY_EVERY]
    return found


if __name__ == "__main__":
    raise SystemExit(not show("Captures beside training", rows()))
