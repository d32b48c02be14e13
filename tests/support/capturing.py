"""A training process without torch that captures into an arena, has a saver, and dies where asked.

Children of `forks`, or this very process. What a child acknowledges stands in its notebook.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.protocol import capture, completed, entries_of, open_stream
from tests.support.waiting import wait_until
from tests.support.worker import Notebook
from walrecover import failpoints, parallel
from walrecover.arena.filling import Filling
from walrecover.arena.layout import Header
from walrecover.arena.memory import Arena
from walrecover.arena.slots import Slot
from walrecover.entries import AttemptEntry, newest_attempt
from walrecover.journal import Journal
from walrecover.processes import identity, started_at
from walrecover.rundir import RunDir
from walrecover.saver import messages as msg
from walrecover.saver.client import Saver
from walrecover.session.background import Background

ROOM = 1 << 20
PATIENCE = 30.0


def assignment(
    run: RunDir, entry: AttemptEntry, rank: int = 0, world: int = 1, supervisor: int = 0
) -> msg.Assignment:
    return msg.Assignment(
        root=str(run.root), run=run.name, attempt=entry.number, nonce=entry.nonce, rank=rank,
        world=world, trainer=identity(), retention=2, supervisor=supervisor,
    )  # fmt: skip


def background(
    run: RunDir, entry: AttemptEntry, journal: Journal, say: Callable[[str], None], **more: Any
) -> Background:
    """The session's side of a saver, for the only rank of an attempt."""
    given = {"slots": 2, "retention": 2} | more
    return Background(
        run=run, journal=journal, attempt=entry.number, nonce=entry.nonce, rank=0, world=1,
        verified=frozenset(), say=say, **given,
    )  # fmt: skip


class Training:
    """One rank: its stream, its arena, its saver."""

    def __init__(
        self, run: RunDir, entry: AttemptEntry, rank: int = 0, world: int = 1, slots: int = 2,
        supervisor: int = 0,
    ) -> None:  # fmt: skip
        self.supervisor = supervisor
        self.run, self.entry, self.rank, self.world = run, entry, rank, world
        self.step = entry.plan.base.step if entry.plan.base else 0
        self.journal: Journal = open_stream(run, entry, rank, world)
        self.arena = Arena.create(slots, ROOM)
        self.filling = Filling(self.arena, rank)
        self.reports: list[msg.Report] = []
        self.saver = self.hire()

    def hire(self) -> Saver:
        given = assignment(self.run, self.entry, self.rank, self.world, self.supervisor)
        saver = Saver(given, self.arena)
        self.reports += saver.wait(PATIENCE, lambda report: isinstance(report, msg.Ready))
        assert saver.pid, self.reports
        return saver

    def dismiss(self) -> None:
        """Let the saver finish, and wait for its end."""
        self.saver.close()
        pid = self.saver.pid
        wait_until(lambda: pid is None or started_at(pid) is None)

    def train(self) -> None:
        self.step += 1
        self.journal.append(completed(self.step))

    def capture(
        self, *, wanted: bool = True, end: bool = False, tell: bool = True, ahead: int = 0,
        into: Slot | None = None,
    ) -> Header | None:  # fmt: skip
        """None where all slots are held. `ahead`: as if so many events more had been appended;
        `into`: this slot, whoever holds it."""
        slot = into or self.filling.free_slot(saver_lives=self.saver.lives)
        if slot is None:
            return None
        taken = capture(self.run.name, self.entry, self.rank, self.world, self.step, end=end)
        fields: dict[str, Any] = {
            name: getattr(taken, name)
            for name in (
                "run", "step", "end", "attempt", "nonce", "rank", "world", "base", "position",
                "writer", "events_after",
            )
        }  # fmt: skip
        fields |= {"lsn": self.journal.appended + ahead, "finished": end}
        header = self.filling.fill(
            slot, taken.tensors, taken.shared, fields, taken.tree, wanted=wanted
        )
        if tell:
            self.saver.tell(msg.Captured())
        return header

    def await_report(self, kind: type, step: int | None = None) -> Any:
        """The first such report that has not been awaited yet."""

        def is_it(report: msg.Report) -> bool:
            return isinstance(report, kind) and step in (None, getattr(report, "step", None))

        if not any(map(is_it, self.reports)):
            self.reports += self.saver.wait(PATIENCE, is_it)
        found = next(filter(is_it, self.reports), None)
        assert found is not None, f"no {kind.__name__} in {self.reports}"
        self.reports.remove(found)
        return found

    def close(self) -> None:
        self.dismiss()
        self.arena.close()
        self.journal.close()


def run_of(root: str) -> RunDir:
    return RunDir(Path(root), "a-run")


def rank(
    root: str, notes: str, rank: int, world: int, then: str, steps: int = 1,
    saver_failpoint: str = "", wanted: bool = True, die_by: int = signal.SIGKILL,
    offers: bool = False,
) -> int:  # fmt: skip
    """Train and capture `steps` steps, each but the last awaited; then die in the way that `then`
    names. `offers`: what is left, to a next attempt, which its parent would start."""
    book = Notebook(notes)
    if saver_failpoint:
        os.environ[failpoints.ENVIRONMENT] = saver_failpoint
    run = run_of(root)
    entry = newest_attempt(entries_of(run))
    assert entry is not None
    supervisor = os.getppid() if offers else 0
    training = Training(run, entry, rank, world, slots=3, supervisor=supervisor)
    book.say("saver", training.saver.pid)
    for _ in range(steps - 1):
        training.train()
        training.capture()
        training.await_report(msg.Voted, training.step)
        if rank == 0:
            training.await_report(msg.Committed, training.step)
    training.train()
    if then == "filling":
        _die_in_copy(2, die_by)
    if then == "voted":
        training.capture(wanted=wanted)
        training.await_report(msg.Voted, training.step)
    else:
        # Without its events a capture is worth nothing, and death would take the last ones.
        training.journal.sync()
        header = training.capture(
            wanted=wanted, tell=then != "untold", ahead=1 if then == "events lost" else 0
        )
        assert header is not None
    if then in ("digested", "scribbled"):  # the saver was stopped there
        wait_until(lambda: training.arena.slots[0].digests(header) is not None)
    if then == "scribbled":
        ctypes.memset(training.arena.slots[0].data_address(header) + 3, 0xAA, 5)
    if then == "hung up":  # as a dying process does it, and time for the saver to go by that
        training.saver._sock.shutdown(socket.SHUT_RDWR)
        select.select([training.saver._pidfd], [], [], 0.2)
    book.say("captured", training.step)
    if then == "exits":
        return 0
    os.kill(os.getpid(), die_by)
    return 99


def _die_in_copy(nth: int, number: int) -> None:
    real, count = parallel._move, iter(range(1, nth + 1))

    def move(piece: tuple[int, int, int]) -> None:
        to, source, nbytes = piece
        if next(count) == nth:
            real((to, source, nbytes // 2))
            os.kill(os.getpid(), number)
        real(piece)

    parallel._move = move


def endless(root: str, notes: str, slots: int, offers: bool = False) -> int:
    """Train and capture until somebody ends it; say what was captured and what was committed. Every
    third capture is only kept in memory, where there are three slots. `offers`: to a next attempt,
    which its parent would start."""
    book = Notebook(notes)
    run = run_of(root)
    entry = newest_attempt(entries_of(run))
    assert entry is not None
    training = Training(run, entry, slots=slots, supervisor=os.getppid() if offers else 0)
    book.say("saver", training.saver.pid)
    while True:
        training.train()
        header = training.capture(wanted=slots < 3 or training.step % 3 != 0)
        if header is None:
            training.reports += training.saver.wait(PATIENCE, lambda report: True)
        else:
            book.say("captured", training.step)
        for report in [*training.reports, *training.saver.reports()]:
            if isinstance(report, msg.Committed):
                book.say("committed", report.step)
        training.reports = []
        if not training.saver.lives:
            training.dismiss()
            training.saver = training.hire()
            book.say("saver", training.saver.pid)
