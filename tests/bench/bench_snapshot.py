"""A blocking snapshot of 430 MB, digests and vote included, beside safetensors save + fsync."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bench.measure import Row, at_most, sample, show
from walrecover import snapshot
from walrecover.rundir import RunDir
from walrecover.snapshot import Capture
from walrecover.torch_adapter.objects import Attached

BYTES = 430_000_000
TENSORS = 496
ROUNDS = 9


class NoJournal:
    """A stream without events: this measures the shards and the vote."""

    def sync(self) -> tuple[int, bytes]:
        return 0, bytes(16)

    def envelopes(self, after: int, upto: int) -> list[bytes]:
        return []


def state() -> dict[str, torch.Tensor]:
    each = BYTES // 4 // TENSORS
    return {f"layer.{n}.weight": torch.randn(each) for n in range(TENSORS)}


def peer(tensors: dict[str, torch.Tensor], folder: Path, number: int) -> float:
    path = folder / f"peer-{number}.safetensors"
    began = time.perf_counter()
    save_file(tensors, path)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    took = time.perf_counter() - began
    path.unlink()
    return took


def ours(attached: Attached, run: RunDir, number: int) -> float:
    began = time.perf_counter()
    captured = attached.capture()
    capture = Capture(
        run=run.name,
        step=number + 1,
        end=False,
        attempt=1,
        nonce="00000000",
        rank=0,
        world=1,
        base="",
        position="",
        tensors=captured.tensors,
        shared=captured.shared,
        tree=captured.tree,
        writer="rank-0",
        events_after=0,
    )
    snapshot.vote(run, capture, NoJournal())
    took = time.perf_counter() - began
    shutil.rmtree(run.snapshots / capture.name)
    return took


def rows() -> list[Row]:
    torch.set_num_threads(1)
    tensors = state()
    attached = Attached({"model": tensors})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = RunDir(folder / "run", "bench")
        run.create()
        theirs, mine = [], []
        for number in range(ROUNDS):  # in turn, so that a drift of the disk meets both
            theirs.append(peer(tensors, folder, number))
            mine.append(ours(attached, run, number))
    return [
        at_most(
            "blocking snapshot of 430 MB beside safetensors save + fsync",
            sample(mine),
            sample(theirs),
            1.4,
        )
    ]


if __name__ == "__main__":
    raise SystemExit(not show("A snapshot", rows()))
