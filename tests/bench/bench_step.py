"""What a step costs the training loop: `run.step()` and the boundary, RNG digests included, and the
copies that are kept so that a failing step loses none: once of a model without buffers, once of one
with BatchNorm, a schedule and a dict of metrics beside it.

Beside it, in the same run: an inline synced LMDB commit of an event of the same size.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

import walrecover
from tests.bench.measure import Row, at_most, sample, show, timed

STEPS = 2000
WARM_UP = 64


def inline(folder: Path) -> Callable[[], None]:
    """A synced commit of one 300-byte event, as a loop without a journal thread would do."""
    environment = lmdb.open(str(folder / "inline"), map_size=64 << 20, lib_version=0)
    value = os.urandom(300)
    count = iter(range(STEPS + 1))

    def commit() -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(next(count).to_bytes(8, "big"), value)

    return commit


def training(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """A step of a small network, 1 to 2 ms long. Returns its loss."""
    inputs, labels = torch.randn(64, 128), torch.randint(0, 10, (64,))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    return step


def network(norm: bool) -> torch.nn.Sequential:
    layers = [torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)]
    if norm:
        layers[1:1] = [torch.nn.BatchNorm1d(256)]
    return torch.nn.Sequential(*layers)


def beside(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What many scripts attach besides."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    return {"scheduler": schedule, "metrics": {"best": 0.5, "recent": [0.25] * 100}}


def measured(folder: Path, moving: bool = False) -> tuple[list[float], list[float]]:
    """Seconds inside `run.step` and the loop's own `next`, and seconds of an inline commit.

    In turn, each behind a step of training, which leaves neither its code and data in the caches.
    """
    model = network(moving)
    optimizer = torch.optim.AdamW(model.parameters())
    np.random.seed(1)
    run = walrecover.attach(
        name="bench",
        dir=str(folder / "run"),
        every="100000s",
        model=model,
        optimizer=optimizer,
        **(beside(optimizer) if moving else {}),
    )
    train, commit = training(model, optimizer), inline(folder)
    ours: list[float] = []
    peers: list[float] = []
    iterator = iter(run.loop(range(STEPS + 1)))
    next(iterator)
    for _ in range(STEPS):
        loss = train()
        began = time.perf_counter()
        run.step(loss=loss)
        next(iterator)
        ours.append(time.perf_counter() - began)
        train()
        peers += timed(commit, 1)
    run._close()
    return ours[WARM_UP:], peers[WARM_UP:]


def rows() -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        ours, peer = (sample(seconds) for seconds in measured(Path(name)))
    with tempfile.TemporaryDirectory() as name:
        copying, same = (sample(seconds) for seconds in measured(Path(name), moving=True))
    what = "run.step() and the boundary, NumPy's RNG in use, beside an inline synced commit"
    more = "the same, with BatchNorm, a schedule and metrics to copy at each step"
    stated = at_most(more, copying, same, 0.25)._replace(bound="", holds=None)
    return [at_most(what, ours, peer, 0.25), stated]


if __name__ == "__main__":
    raise SystemExit(not show("A step, as the loop sees it", rows()))
