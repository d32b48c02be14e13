"""Snapshots of a training on a GPU, 430 MB of state: what they cost it, beside one copy of as many
bytes into pinned memory, `torch.save`, and `dcp.async_save` by a process with pinned staging.

Blocks of steps take turns, in one process and on one model. Needs a GPU, and so is no part of
`make bench`: `python -m tests.bench cuda`.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

import walrecover
from tests.bench.measure import Row, Sample, at_most, duration, sample, show
from tests.bench.peers import AsyncSave, torch_saved
from walrecover.session.run import Run
from walrecover.torch_adapter.devices import Pinned

WIDTH, LAYERS, BATCH = 2000, 9, 8192
BLOCK, ROUNDS = 6, 9


class Training:
    """36 million parameters with AdamW, and steps of some 30 ms."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        layers = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.model = torch.nn.Sequential(*layers).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.x = torch.randn(BATCH, WIDTH, device="cuda")

    def step(self, before_update: Callable[[], object] = lambda: None) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.model(self.x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        before_update()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Plain dicts: pinned staging fails for a module's own, with its metadata."""
        return {"model": {**self.model.state_dict()}, "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> list[torch.Tensor]:
        entries = self.optimizer.state_dict()["state"].values()
        return [*self.model.state_dict().values(), *(t for e in entries for t in e.values())]

    def block(self) -> float:
        """Seconds of so many steps."""
        began = time.perf_counter()
        for _ in range(BLOCK):
            self.step()
        torch.cuda.synchronize()
        return time.perf_counter() - began


class Copies:
    """The state into pinned memory that is there already."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors
        total = sum(t.nbytes + 512 for t in tensors)
        self._memory = torch.zeros(total, dtype=torch.uint8, pin_memory=True)

    def __call__(self) -> float:
        place = 0
        began = time.perf_counter()
        for tensor in self._tensors:
            target = self._memory[place : place + tensor.nbytes].view(tensor.dtype)
            target.view(tensor.shape).copy_(tensor, non_blocking=True)
            place += -(-tensor.nbytes // 512) * 512
        torch.cuda.synchronize()
        return time.perf_counter() - began


class Ours:
    """The same training with walrecover attached; snapshots are asked for."""

    def __init__(self, training: Training, folder: Path) -> None:
        self._training = training
        self.run: Run = walrecover.attach(
            name="bench", dir=str(folder), every="100000steps",
            model=training.model, optimizer=training.optimizer,
        )  # fmt: skip
        self._steps: Iterator[int] = iter(self.run.loop(range(10**9)))
        next(self._steps)

    def one(self) -> float:
        """A step; returns the seconds of its boundary, during which nothing is queued."""
        self.run.step(loss=self._training.step())
        began = time.perf_counter()
        next(self._steps)
        return time.perf_counter() - began

    def block(self, snapshot: bool = False) -> float:
        began = time.perf_counter()
        for number in range(BLOCK):
            if snapshot and number == 0:
                self.run.snapshot()
            self.one()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def stall(self) -> float:
        """Of a boundary with a snapshot, on a device that is idle."""
        loss = self._training.step()
        torch.cuda.synchronize()
        self.run.snapshot()
        self.run.step(loss=loss)
        began = time.perf_counter()
        next(self._steps)
        return time.perf_counter() - began

    def committed(self) -> float:
        stall = self.stall()
        began = time.perf_counter() - stall
        saver = self.run._saver
        assert saver.tried is not None and saver.wait(saver.tried)
        return time.perf_counter() - began

    def rest(self) -> None:
        self.run._saver.drain()


def pinning(nbytes: int) -> float:
    """Seconds to pin so much touched memory, which the first boundary pays for."""
    memory = (ctypes.c_char * nbytes)()
    ctypes.memset(memory, 1, nbytes)
    began = time.perf_counter()
    pinned = Pinned(ctypes.addressof(memory), nbytes)
    took = time.perf_counter() - began
    pinned.close()
    return took


def stated(what: str, ours: str) -> Row:
    return Row(what, ours, "", None, "", None)


def measured(folder: Path) -> list[Row]:
    training = Training()
    for _ in range(3):
        training.step()
    ours = Ours(training, folder)
    ours.block(snapshot=True)
    ours.rest()
    copies = Copies(training.tensors())
    found: dict[str, list[float]] = {}

    def take(name: str, call: Callable[[], float]) -> None:
        found.setdefault(name, []).append(call())
        ours.rest()

    for _ in range(ROUNDS):
        take("memcpy", copies)
        take("bare", training.block)
        take("attached", ours.block)
        take("snapshot", lambda: ours.block(snapshot=True))
        take("stall", ours.stall)
        take("committed", ours.committed)
        take("torch.save", lambda: torch_saved(training.state(), folder))
    ours.run._close()
    for name, rows in found.items():
        found[name] = rows[1:]
    lost = [a - b for a, b in zip(found["snapshot"], found["attached"], strict=True)]
    each = [(a - b) / BLOCK for a, b in zip(found["attached"], found["bare"], strict=True)]
    memcpy = sample(found["memcpy"])
    state = sum(t.nbytes for t in training.tensors())
    rows = [
        at_most("GPU: a snapshot's stall, beside one memcpy", sample(found["stall"]), memcpy, 1.1),
        at_most("GPU: training time lost per snapshot", sample(lost), memcpy, 2),
        at_most(
            "GPU: capture to committed, beside torch.save + fsync",
            sample(found["committed"]),
            sample(found["torch.save"]),
            0.6,
        ),
        at_most(
            f"GPU: {BLOCK} steps with a snapshot, beside bare ones",
            sample(found["snapshot"]),
            sample(found["bare"]),
            1 / 0.97,
        ),
        stated("GPU: a step's boundary, each", str(sample(each))),
        Row(
            f"GPU: pinning {3 * state >> 20} MiB", duration(pinning(3 * state)), "", None, "", None
        ),
    ]
    return rows + beside_dcp(training, folder, sample(found["committed"]))


def beside_dcp(training: Training, folder: Path, committed: Sample) -> list[Row]:
    """Where the state may be staged while training goes on, until the next optimizer's step."""
    peer = AsyncSave(folder, AsyncCheckpointerType.PROCESS)
    lost, written = [], []
    for _ in range(ROUNDS):
        bare = training.block()
        began = time.perf_counter()
        training.step()
        peer.begin(training.state())
        training.step(before_update=peer.await_staged)
        for _ in range(BLOCK - 2):
            training.step()
        torch.cuda.synchronize()
        lost.append(time.perf_counter() - began - bare)
        written.append(peer.await_written())
    peer.close()
    return [
        stated("GPU: training time lost to dcp.async_save", str(sample(lost[1:]))),
        at_most(
            "GPU: capture to committed, beside dcp.async_save", committed, sample(written[1:]), 0.35
        ),
    ]


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        return measured(Path(name))


if __name__ == "__main__":
    raise SystemExit(not show("A training on a GPU", rows()))
