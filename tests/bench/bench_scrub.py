"""Scrubbing 430 MB: beside one core's blake3 of the same bytes, and what a training pays for a
scrubber that never rests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from blake3 import blake3

from tests.bench.bench_arena import Steps
from tests.bench.bench_snapshot import NoJournal, capture_of, state
from tests.bench.measure import Row, Sample, at_most, sample, show, timed
from tests.support.protocol import holder
from walrecover import snapshot
from walrecover.entries import SnapshotRef
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.scrubbing import items_of, read
from walrecover.torch_adapter.objects import Attached

ROUNDS = 9
PAIRS = 41
ROOT = Path(__file__).parents[2]


def committed(root: Path, tensors: dict[str, torch.Tensor]) -> tuple[RunDir, SnapshotRef]:
    run = RunDir(root, "bench")
    run.create()
    entry = begin_attempt(run, holder()).entry
    capture = capture_of(Attached({"model": tensors}), run, 0)._replace(nonce=entry.nonce)
    snapshot.vote(run, capture, NoJournal())
    done = snapshot.commit(
        run, step=1, end=False, attempt=1, nonce=entry.nonce, world=1, finished=False
    )
    assert done is not None
    return run, done.snapshot


def hashed(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        blake3(memoryview(tensor.numpy()).cast("B")).digest()


def speed(run: RunDir, ref: SnapshotRef, tensors: dict[str, torch.Tensor]) -> list[Row]:
    """From the cache, so that it is not the disk that is measured; then from the disk."""
    (item,) = items_of(run)
    ours, peer, disk = [], [], []
    for _ in range(ROUNDS):
        peer += timed(lambda: hashed(tensors), 1)
        snapshot.verify(run, ref)
        ours += timed(lambda: snapshot.verify(run, ref, mapped=True), 1)
        disk += timed(lambda: read(run, item), 1)
    return [
        at_most("scrub 430 MB from the cache, beside blake3", sample(ours), sample(peer), 1.25),
        Row("… and from the disk", str(sample(disk)), "", None, "", None),
    ]  # fmt: skip


def slowdown(run: RunDir) -> list[Row]:
    """Steps beside a scrubber that reads all the time, after as many beside one that is stopped."""
    steps, with_it, without = Steps(), list[float](), list[float]()
    process = subprocess.Popen(
        [sys.executable, "-m", "walrecover.scrubber", str(run.root), "--cycle", "0.001s"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    with process:
        sum(steps() for _ in range(20))
        for _ in range(PAIRS):
            os.kill(process.pid, signal.SIGSTOP)
            without.append(sum(steps() for _ in range(5)))
            os.kill(process.pid, signal.SIGCONT)
            with_it.append(sum(steps() for _ in range(5)))
        assert process.stdin
        process.stdin.close()
    ratios = [one / other for one, other in zip(with_it, without, strict=True)]
    middle = sample(ratios)
    row = at_most(
        "5 training steps beside a scrubber, paired", sample(with_it), sample(without), 1.02
    )
    return [row._replace(ratio=middle.median, holds=middle.median <= 1.02), _interval(middle)]


def _interval(ratios: Sample) -> Row:
    return Row(
        "… quartiles of the ratio", f"{ratios.low:.3f}, {ratios.high:.3f}", "", None, "", None
    )


def rows() -> list[Row]:
    torch.set_num_threads(os.cpu_count() or 1)
    tensors = state()
    with tempfile.TemporaryDirectory() as folder:
        run, ref = committed(Path(folder), tensors)
        return [*speed(run, ref, tensors), *slowdown(run)]


if __name__ == "__main__":
    show("scrub", rows())
