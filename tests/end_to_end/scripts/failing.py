"""Scripts that fail where they are told to: what a step has moved by then, the run must not keep.

`at` is the step in whose making the failure comes, `where` the place in it; a script fails only
while the file `healed` is not there. BatchNorm and dropout move in a failed forward, and so does
what is attached beside the model.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, Dataset

import walrecover
from tests.support.waiting import last_commit, wait_until
from walrecover import failpoints

from .toy import accuracy, network, samples, seed

HEALED = Path("healed")


class Broken(ValueError):
    """What the tests plant."""


class Fuse:
    """Blows once step `at` is being made and its place is reached."""

    def __init__(self, at: int, where: str) -> None:
        self.at, self.where, self.making = at, where, 0
        self.healed = HEALED.exists()

    def reaches(self, where: str) -> None:
        if not self.healed and self.making == self.at and where == self.where:
            HEALED.touch()
            raise Broken(f"planted in {where} of step {self.at}, token=hunter2hunter2")


class Fusible(nn.Module):
    """The last layer: by now BatchNorm and dropout of the failed step have moved."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self.fuse = [fuse]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.fuse[0].reaches("forward")
        return x


class FusibleData(Dataset[Any]):
    def __init__(self, fuse: Fuse) -> None:
        self.samples, self.fuse = samples(), fuse

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        x = x + 0.01 * torch.randn(4)  # augmented by a draw from the global generator
        self.fuse.reaches("loader")
        return x, y


def training(at: int, where: str, epochs: int = 3, workers: int = 0) -> dict[str, Any]:
    seed()
    fuse = Fuse(at, where)
    model = nn.Sequential(network(), Fusible(fuse))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = MultiStepLR(optimizer, [3, 7], 0.5)
    loader: Any = DataLoader(FusibleData(fuse), 4, shuffle=True, num_workers=workers)
    seen = SimpleNamespace(tokens=0, best=0.0, average=torch.zeros(2))
    counts: dict[str, list[float]] = {"drawn": []}
    run = walrecover.attach(
        model=model, optimizer=optimizer, scheduler=scheduler, seen=seen, counts=counts
    )
    fuse.making = run.global_step + 1
    for _ in run.loop(range(epochs)):
        for x, y in run.loop(loader):
            seen.tokens += x.numel()  # what a failed step has counted already
            counts["drawn"].append(random.random() + np.random.rand())
            seen.average.data.mul_(0.9).add_(x.mean(0)[:2])
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            if where == "backward":
                loss.register_hook(lambda _: fuse.reaches("backward"))
            loss.backward()
            optimizer.step()
            fuse.reaches("between")
            run.step(loss=loss)
            if run.global_step % 3 == 0:
                model(torch.randn(4, 4))  # a sample in train mode, between step and boundary
                fuse.reaches("evaluation")
            fuse.making = run.global_step + 1
        fuse.making = run.global_step
        scheduler.step()
        seen.best = max(seen.best, accuracy(model, loader))
        fuse.reaches("between epochs")
        fuse.making += 1
    return {"tokens": seen.tokens}


def signalled(at: int, number: int, committed: int = 0) -> dict[str, Any]:
    """The same, signalled in the forward of a step rather than failing, once so much is
    committed."""

    def send(fuse: Fuse, where: str) -> None:
        if not HEALED.exists() and fuse.making == at and where == "forward":
            HEALED.touch()
            wait_until(lambda: last_commit() >= committed)
            os.kill(os.getpid(), signal.Signals(number))

    Fuse.reaches = send  # type: ignore[method-assign, assignment]
    return training(at, "nowhere")


def hidden(at: int, where: str) -> None:
    """The script turns its exception into an exit code, as some launchers do."""
    try:
        training(at, where)
    except Broken:
        sys.exit(3)


def recorded(at: int, where: str) -> None:
    """As torchrun's workers often are: torch writes the error's file and raises it again."""
    record(training)(at, where)


def refused(at: int, where: str) -> dict[str, Any]:
    """The disk refuses the third snapshot."""
    if not HEALED.exists():
        os.environ[failpoints.ENVIRONMENT] = "shards.tensors.written:enospc:3"  # for its saver
    return training(at, where)


def by_hand(at: int) -> dict[str, Any]:
    """Parameters that no optimizer moves: nothing tells when."""
    seed()
    fuse = Fuse(at, "forward")
    model = nn.Sequential(network(), Fusible(fuse))
    run = walrecover.attach(model=model)
    fuse.making = run.global_step + 1
    for x, y in run.loop([samples()[n : n + 4] for n in range(0, 20, 2)]):
        loss = cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        run.step(loss=loss)
        fuse.making += 1
    return {}


def beside(at: int) -> dict[str, Any]:
    """Another thread trains, and is in the middle of a step when the main thread fails."""
    if HEALED.exists():
        return training(at, "nowhere")
    reached = threading.Event()

    def stay(fuse: Fuse, where: str) -> None:
        if fuse.making == at and where == "forward":
            reached.set()
            threading.Event().wait()

    Fuse.reaches = stay  # type: ignore[method-assign, assignment]
    threading.Thread(target=training, args=(at, "nowhere"), daemon=True).start()
    reached.wait()
    HEALED.touch()
    raise Broken("beside the training")
