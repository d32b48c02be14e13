"""A blocking snapshot of 430 MB, digests and vote included, beside safetensors save + fsync; what
looking for unchanged tensors costs where there are none, and what it saves where most are."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from tests.bench.measure import Row, at_most, sample, show
from walrecover import snapshot
from walrecover.reuse import Past
from walrecover.rundir import RunDir
from walrecover.snapshot import Capture
from walrecover.torch_adapter.objects import Attached

BYTES = 430_000_000
TENSORS = 496
ROUNDS = 9
LINES = 2
"""The first of each line of shards writes everything (specs/04-snapshots.md)."""


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


def capture_of(attached: Attached, run: RunDir, number: int) -> Capture:
    captured = attached.capture()
    return Capture(
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


def ours(attached: Attached, run: RunDir, number: int) -> float:
    """Of a state of which everything changes, as far as the session knows."""
    began = time.perf_counter()
    capture = capture_of(attached, run, number)
    snapshot.vote(run, capture, NoJournal())
    took = time.perf_counter() - began
    shutil.rmtree(run.snapshots / capture.name)
    return took


class Moving:
    """The same with the session's memory of what changed: every tensor does, at every step."""

    def __init__(self, attached: Attached, tensors: dict[str, torch.Tensor], run: RunDir) -> None:
        self._attached, self._tensors, self._run = attached, tensors, run
        self._past = Past()
        self._folders: list[Path] = []

    def once(self, number: int) -> float:
        for tensor in self._tensors.values():
            tensor[0] = number + 1.0
        began = time.perf_counter()
        capture = capture_of(self._attached, self._run, 1000 + number)
        part = snapshot.vote(self._run, capture, NoJournal(), offers=self._past.offers())
        took = time.perf_counter() - began
        self._past.cast(part)
        self._past.committed({(part.step, part.end)})
        self._folders.append(self._run.snapshots / capture.name)
        if len(self._folders) > LINES:
            shutil.rmtree(self._folders.pop(0))
        return took


class Frozen(NamedTuple):
    """Bytes written and seconds of each snapshot; `changed`: the bytes that changed before it."""

    changed: int
    written: list[int]
    seconds: list[float]


def frozen(attached: Attached, tensors: dict[str, torch.Tensor], run: RunDir) -> Frozen:
    """One tensor in a hundred changes, as under LoRA."""
    names = list(tensors)[::100]
    changed = sum(tensors[name].numel() * 4 for name in names)
    past = Past()
    found = Frozen(changed, [], [])
    for number in range(ROUNDS):
        for name in names:
            tensors[name].normal_()
        began = time.perf_counter()
        capture = capture_of(attached, run, 2000 + number)
        part = snapshot.vote(run, capture, NoJournal(), offers=past.offers())
        found.seconds.append(time.perf_counter() - began)
        past.cast(part)
        past.committed({(part.step, part.end)})
        folder = run.snapshots / capture.name
        found.written.append(sum(path.stat().st_size for path in folder.iterdir()))
    return found


def rows() -> list[Row]:
    torch.set_num_threads(1)
    tensors = state()
    attached = Attached({"model": tensors})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = RunDir(folder / "run", "bench")
        run.create()
        theirs, mine, all_change = [], [], []
        moving = Moving(attached, tensors, run)
        for number in range(ROUNDS):  # in turn, so that a drift of the disk meets both
            theirs.append(peer(tensors, folder, number))
            mine.append(ours(attached, run, number))
            all_change.append(moving.once(number))
        few_change = frozen(attached, tensors, run)
    later = few_change.written[LINES:]
    return [
        at_most(
            "blocking snapshot of 430 MB beside safetensors save + fsync",
            sample(mine),
            sample(theirs),
            1.4,
        ),
        at_most(
            "430 MB of which everything changes, what changed being looked for, beside not",
            sample(all_change[LINES:]),
            sample(mine),
            1.1,
        ),
        Row(
            f"99% frozen: most bytes of a snapshot after the first {LINES}, beside what changed",
            f"{max(later) / 1e6:.2f} MB",
            f"{few_change.changed / 1e6:.2f} MB",
            max(later) / few_change.changed,
            "≤ 1.2 ×",
            max(later) <= 1.2 * few_change.changed,
        ),
        at_most(
            "99% frozen: blocking snapshot, beside one of which everything changes",
            sample(few_change.seconds[LINES:]),
            sample(mine),
            0.5,
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(not show("A snapshot", rows()))
