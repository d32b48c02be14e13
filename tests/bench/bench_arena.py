"""Captures into an arena, 430 MB of state: what training waits for, when they are durable, what the
journal feels of it, and the training time that a snapshot costs with both cores busy."""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from tests.bench.bench_snapshot import state
from tests.bench.measure import Row, at_most, duration, sample, show
from tests.bench.peers import AsyncSave, torch_saved
from tests.support.protocol import completed, holder, open_stream
from walrecover import paced
from walrecover.arena.filling import Filling
from walrecover.arena.memory import Arena
from walrecover.entries import AttemptEntry
from walrecover.journal import Journal
from walrecover.processes import identity
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.saver import messages as msg
from walrecover.saver.client import Saver
from walrecover.torch_adapter.objects import Attached

ROUNDS = 9
BATCHES = 7
PATIENCE = 120.0
SLOT_BYTES = 440 << 20
EVENTS = 300


class Training:
    """A run whose state is captured; `journal` is its stream."""

    def __init__(self, folder: Path, attached: Attached) -> None:
        self.run = RunDir(folder / "run", "bench")
        self.run.create()
        self.entry: AttemptEntry = begin_attempt(self.run, holder()).entry
        self.attached = attached
        self.journal: Journal = open_stream(self.run, self.entry, 0, 1)
        self.arena = Arena.create(2, SLOT_BYTES)
        self.arena.touch()
        self.filling = Filling(self.arena, 0)
        self.step = 0
        self.saver = Saver(
            msg.Assignment(
                root=str(self.run.root), run=self.run.name, attempt=self.entry.number,
                nonce=self.entry.nonce, rank=0, world=1, trainer=identity(),
                retention=2,
            ),
            self.arena,
        )  # fmt: skip
        self.saver.wait(PATIENCE, lambda report: isinstance(report, msg.Ready))

    def capture(self) -> float:
        """Returns the seconds that training waited."""
        self.step += 1
        self.journal.append(completed(self.step))
        began = time.perf_counter()
        slot = self.filling.free_slot(saver_lives=self.saver.lives)
        assert slot is not None
        taken = self.attached.capture()
        fields = {
            "run": self.run.name, "step": self.step, "end": False, "attempt": self.entry.number,
            "nonce": self.entry.nonce, "rank": 0, "world": 1, "base": "", "position": "",
            "writer": "rank-0", "events_after": 0, "lsn": self.journal.appended, "finished": False,
        }  # fmt: skip
        tree = {"objects": taken.tree}
        self.filling.fill(slot, taken.tensors, taken.shared, fields, tree, wanted=True)
        self.saver.tell(msg.Captured())
        return time.perf_counter() - began

    def await_report(self, kind: type) -> None:
        self._last = self.saver.wait(PATIENCE, lambda report: isinstance(report, kind))
        assert any(isinstance(report, kind) for report in self._last), self._last

    def await_rest(self) -> None:
        """Until it has read back what it committed, too."""
        if not isinstance(self._last[-1], msg.Idle):
            self.await_report(msg.Idle)

    def close(self) -> None:
        self.saver.close()
        self.arena.close()
        self.journal.close()


def move(tensors: dict[str, torch.Tensor]) -> None:
    """What did not change would be referenced, not written."""
    for tensor in tensors.values():
        tensor.add_(1)


def memcpy(tensors: dict[str, torch.Tensor], target: torch.Tensor) -> float:
    """The same bytes, in as many pieces, into touched memory."""
    place = target.data_ptr()
    began = time.perf_counter()
    for tensor in tensors.values():
        ctypes.memmove(place, tensor.data_ptr(), tensor.nbytes)
        place += tensor.nbytes
    return time.perf_counter() - began


def written_alone(tensors: dict[str, torch.Tensor], folder: Path) -> float:
    """What the disk takes for as many bytes, nothing digested, no vote, no commit."""
    path = folder / "alone"
    found = Attached({"model": tensors}).capture().tensors
    began = time.perf_counter()
    paced.put(path, found, lambda _: False)
    took = time.perf_counter() - began
    path.unlink()
    return took


def saved_by_dcp(
    folder: Path, tensors: dict[str, torch.Tensor], kind: AsyncCheckpointerType
) -> tuple[list[float], list[float]]:
    """Its stalls, and its times until all is written; the first, which makes its memory, left
    out."""
    peer = AsyncSave(folder, kind)
    stalls, written = [], []
    for _ in range(ROUNDS):
        move(tensors)
        stalls.append(peer.begin({"model": tensors}))
        written.append(peer.await_written())
    peer.close()
    return stalls[1:], written[1:]


def p99s(training: Training, tensors: dict[str, torch.Tensor]) -> tuple[list[float], list[float]]:
    """Of some hundred events each time: idle, and while a capture is saved."""
    idle, beside = [], []
    for _ in range(ROUNDS):
        idle.append(p99_of_syncs(training.journal, lambda: True))
        move(tensors)
        training.capture()
        reports: list[msg.Report] = []

        def is_saved(reports: list[msg.Report] = reports) -> bool:
            reports.extend(training.saver.reports())
            return any(isinstance(report, msg.Voted) for report in reports)

        beside.append(p99_of_syncs(training.journal, is_saved))
        if not isinstance(reports[-1], msg.Idle):
            training.await_report(msg.Idle)
    return idle, beside


def p99_of_syncs(journal: Journal, until: Callable[[], bool]) -> float:
    took = []
    while len(took) < EVENTS or not until():
        journal.append(completed(1))
        began = time.perf_counter()
        journal.sync()
        took.append(time.perf_counter() - began)
        if len(took) > 20 * EVENTS:
            break
    return statistics.quantiles(took, n=100)[98]


def stall_and_durable(folder: Path, tensors: dict[str, torch.Tensor]) -> list[Row]:
    training = Training(folder, Attached({"model": tensors}))
    target = torch.zeros(sum(t.nbytes for t in tensors.values()), dtype=torch.uint8)
    stalls, durable, copies, peers, files = [], [], [], [], []
    for _ in range(ROUNDS):  # in turn, so that a drift meets all
        move(tensors)
        copies.append(memcpy(tensors, target))
        began = time.perf_counter()
        stalls.append(training.capture())
        training.await_report(msg.Committed)
        durable.append(time.perf_counter() - began)
        training.await_rest()
        peers.append(torch_saved(tensors, folder))
        files.append(written_alone(tensors, folder))
    idle, beside = p99s(training, tensors)
    training.close()
    theirs = [saved_by_dcp(folder, tensors, kind) for kind in AsyncCheckpointerType]
    copy = statistics.median(copies)
    return [
        at_most("stall of a capture beside one memcpy", sample(stalls), sample(copies), 1.1),
        at_most(
            "… beside the best dcp.async_save's",
            sample(stalls),
            min(sample(stall) for stall, _ in theirs),
            0.6,
        ),
        Row(
            "the first capture's stall beside one memcpy",
            duration(stalls[0]),
            duration(copy),
            stalls[0] / copy,
            "≤ 1.1 ×",
            stalls[0] <= 1.1 * copy,
        ),
        at_most(
            "capture to committed beside torch.save + fsync", sample(durable), sample(peers), 0.6
        ),
        at_most(
            "… beside the best dcp.async_save",
            sample(durable),
            min(sample(written) for _, written in theirs),
            0.35,
        ),
        Row(
            "… beside a new file past the page cache + fsync",
            str(sample(durable)),
            str(sample(files)),
            sample(durable).median / sample(files).median,
            "",
            None,
        ),
        at_most("p99 of a synced event beside a running save", sample(beside), sample(idle), 2),
    ]


class Steps:
    """Training steps that keep all cores busy."""

    def __init__(self) -> None:
        self._a, self._b = torch.randn(1200, 1200), torch.randn(1200, 1200)

    def __call__(self) -> float:
        began = time.perf_counter()
        for _ in range(4):
            self._a @ self._b
        return time.perf_counter() - began


def lost(folder: Path, tensors: dict[str, torch.Tensor]) -> list[Row]:
    """Stall and slowdown of the next five steps, each beside five undisturbed ones."""
    training = Training(folder, Attached({"model": tensors}))
    target = torch.zeros(sum(t.nbytes for t in tensors.values()), dtype=torch.uint8)
    steps = Steps()
    ours, copies, durable = [], [], []
    for _ in range(BATCHES):
        move(tensors)
        copies.append(memcpy(tensors, target))
        undisturbed = sum(steps() for _ in range(5))
        began = time.perf_counter()
        stall = training.capture()
        ours.append(stall + sum(steps() for _ in range(5)) - undisturbed)
        reports: list[msg.Report] = []
        committed = 0.0
        while not committed or not isinstance(reports[-1], msg.Idle):
            steps()
            reports += training.saver.reports()
            if not committed and any(isinstance(report, msg.Committed) for report in reports):
                committed = time.perf_counter() - began
        durable.append(committed)
    training.close()
    theirs, written = lost_to_dcp(folder, tensors, steps)
    return [
        at_most(
            "training time lost per snapshot, beside one memcpy", sample(ours), sample(copies), 2
        ),
        at_most("… beside dcp.async_save's, by a process", sample(ours), sample(theirs), 0.2),
        Row(
            "… time to committed, and dcp's to written, meanwhile",
            str(sample(durable)),
            str(sample(written)),
            None,
            "",
            None,
        ),
    ]


def lost_to_dcp(
    folder: Path, tensors: dict[str, torch.Tensor], steps: Steps
) -> tuple[list[float], list[float]]:
    """The same for it, staged through shared memory."""
    peer = AsyncSave(folder, AsyncCheckpointerType.PROCESS)
    theirs, written = [], []
    for _ in range(BATCHES):
        move(tensors)
        undisturbed = sum(steps() for _ in range(5))
        began = time.perf_counter()
        stall = peer.begin({"model": tensors})
        theirs.append(stall + sum(steps() for _ in range(5)) - undisturbed)
        while not peer.is_written:
            steps()
        written.append(time.perf_counter() - began)
        peer.await_written()
    peer.close()
    return theirs[1:], written[1:]


def rows() -> list[Row]:
    found: list[Row] = []
    for measure, threads in ((stall_and_durable, 1), (lost, os.cpu_count() or 1)):
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as name:
            found += measure(Path(name), state())
    return found


if __name__ == "__main__":
    raise SystemExit(not show("Captures into an arena", rows()))
