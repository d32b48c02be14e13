"""What every contender of the race trains, and the log from which it is measured.

The model, data and schedule of examples/char_gpt.py, one thread, no loader workers. Each script
tells an append-only file when its process begins, each completed step, and the end. The harness
believes nothing else.
"""

# ruff: noqa: E402 (a process has begun before it imports torch)

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = os.open(os.environ["RACE_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def tell(*words: object) -> None:
    line = " ".join(map(str, (words[0], repr(time.time()), os.getpid(), *words[1:])))
    os.write(LOG, f"{line}\n".encode())


tell("begun")  # before torch is imported

sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))

import torch
from char_gpt import GPT, TRAINING, Windows, loss_of, warm_up_then_cosine
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader


def told(step: int, numbers: Tensor, loss: Tensor) -> None:
    """A step is done: which samples it was made of, and the bits of its loss."""
    tell("step", step, f"{zlib.crc32(numbers.numpy().tobytes()):08x}", loss.item().hex())


def ended(model: nn.Module) -> None:
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    tell("ended", hashlib.sha256(weights).hexdigest())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints go")
    for name in ("total", "every", "seed", "layers", "width", "batch-size", "context"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--steps-per-epoch", type=int, required=True)
    return parser.parse_args()


def model_of(args: argparse.Namespace) -> GPT:
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # else a step of a long run takes half as long again
    return GPT(args.layers, args.width, args.context)


def windows_of(args: argparse.Namespace) -> Windows:
    return Windows(TRAINING, args.steps_per_epoch * args.batch_size, args.context)


def optimizer_of(model: nn.Module, total: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return optimizer, LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, total))


class Training:
    """The loop, with all that an exact resume by hand takes: generators and place in the data."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.total, self.per_epoch = args.total, args.steps_per_epoch
        self.model = model_of(args)
        self.loader = DataLoader(windows_of(args), args.batch_size, shuffle=True)
        self.optimizer, self.scheduler = optimizer_of(self.model, args.total)
        self.step = 0
        self._epoch_began: Tensor | None = None
        self._resumed: Tensor | None = None

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "epoch_began": self._epoch_began,
            "generator": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        self._epoch_began, self._resumed = state["epoch_began"], state["generator"]

    def steps(self) -> Iterator[int]:
        """Train on from where it stands, to the end of the last epoch; each completed step."""
        while self.step < self.total:
            for x, y, numbers in self._batches():
                loss = loss_of(self.model, x, y)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.step += 1
                told(self.step, numbers, loss)
                yield self.step
        ended(self.model)

    def _batches(self) -> Iterator[Any]:
        """An epoch, or what is left of it."""
        done = self.step % self.per_epoch
        if done:
            assert self._epoch_began is not None
            torch.set_rng_state(self._epoch_began)
        elif self._resumed is not None:  # saved between two epochs
            torch.set_rng_state(self._resumed)
        self._epoch_began = torch.get_rng_state()
        batches = iter(self.loader)
        for _ in range(done):
            next(batches)
        if done and self._resumed is not None:
            torch.set_rng_state(self._resumed)
        self._resumed = None
        return batches
