"""One command, from its start to the end of all that it left behind.

Owns the wait and the reasons to end the command; must not decide what follows, nor say why it
ended (`evidence` and `causes` do).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from walrecover.causes import Forced
from walrecover.events import WorkerStarted
from walrecover.processes import await_ends, children, kill_tree, reap
from walrecover.rundir import RunDir
from walrecover.saver import offers, roll
from walrecover.supervisor.child import Child, Command, Ending, Unusable, start
from walrecover.supervisor.evidence import Before
from walrecover.supervisor.hanging import Monitor
from walrecover.supervisor.notes import Notes, say
from walrecover.supervisor.signals import Signals
from walrecover.supervisor.standby import Standbys
from walrecover.supervisor.stopping import Stopping
from walrecover.supervisor.succession import Succession

SWEEP_SECONDS = 5.0
"""From TERM to SIGKILL for what an attempt leaves behind that nobody asked to stop."""

SAVING_SECONDS = 120.0
"""For what the training left in memory to be saved."""

SETTLED_SECONDS = 0.01
"""Between two looks whether it is."""

FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.2, 2.0
"""Until the first, and between two looks for a successor and at the command's cgroup."""


class Outcome(NamedTuple):
    """How a command ended. `pid` 0: it was never started. `forced`: why we ended it. `seen`: when
    its end was noticed, in Unix time."""

    ending: Ending
    pid: int
    forced: Forced | None
    before: Before
    peak: int
    seconds: float
    seen: float = 0.0


@contextlib.contextmanager
def ending_offers(run: RunDir) -> Iterator[None]:
    """Behind the last attempt nobody takes what savers still offer: their memory goes, too."""
    try:
        yield
    finally:
        savers = roll.of_run(run, children)
        for pid in offers.settled(run, savers):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)  # not reaped, so the pid is still its own
                os.waitpid(pid, 0)


class Watch:
    """What waits for the command of one attempt."""

    def __init__(
        self,
        signals: Signals,
        stopping: Stopping,
        succession: Succession,
        grace: float,
        standbys: Standbys,
        run: RunDir,
        logs: Sequence[str] = (),
    ) -> None:
        self._run = run
        self._standbys = standbys
        self._signals = signals
        self._stopping = stopping
        self._succession = succession
        self._grace = grace
        self._logs = logs

    def run(self, command: Command, notes: Notes, monitor: Monitor) -> Outcome:
        """Start the command, wait for its end, and end what it leaves behind."""
        began = time.monotonic()
        self._before = Before.note(command.environ, self._logs)
        try:
            child, standby = self._standbys.promote(command) or (start(command, self._signals), "")
        except Unusable as error:
            forced = Forced("unusable", str(error))
            return Outcome(Ending(code=error.exit_code), 0, forced, self._before, 0, 0.0)
        # Arguments may hold secrets; the ranks record theirs, redacted.
        notes.append(
            WorkerStarted(at=time.time(), pid=child.pid, argv=command.argv[:1], standby=standby)
        )
        self._stopping.child = child
        reason = self._wait(command, child, monitor)
        seen = time.time()
        monitor.note()
        self._sweep(child)
        ending = child.ending or Ending(signal=9)
        seconds = time.monotonic() - began
        return Outcome(ending, child.pid, reason, self._before, child.peak, seconds, seen)

    def _sweep(self, child: Child) -> None:
        left = self._stopping.seconds_left()
        grace = min(self._grace, SWEEP_SECONDS) if left is None else left
        kept = frozenset() if self._stopping.asked else frozenset(self._standbys.kept())
        on_end = self._standbys.apart(child.note_end)
        survivors = kill_tree(grace, on_end, self._stopping, lambda: kept | self._savers())
        if self._saving() and not await_ends(
            self._saving, SAVING_SECONDS, on_end, self._stopping, SETTLED_SECONDS
        ):
            say("what the training left in memory is not saved: that takes too long")
            kill_tree(0.0, on_end, self._stopping, lambda: kept)
        if survivors:
            pids = ", ".join(str(process.pid) for process in survivors)
            say(f"these processes outlive SIGKILL, and are left behind: {pids}")

    def _savers(self) -> set[int]:
        """Those of this run that are children of ours."""
        return roll.of_run(self._run, children)

    def _saving(self) -> set[int]:
        """Those that still save: that is settled before there is another plan. The others only
        offer what they have in memory to the next attempt."""
        savers = self._savers()
        return savers - offers.settled(self._run, savers)

    def _wait(self, command: Command, child: Child, monitor: Monitor) -> Forced | None:
        """Wait for the child's end, or for a reason to end it, which is returned."""
        look = time.monotonic() + FIRST_LOOK_SECONDS
        while True:
            if self._stopping.asked is not None:
                self._standbys.dismiss()
            reap(self._standbys.apart(child.note_end))
            if child.ending is not None:
                return None
            left = self._stopping.seconds_left()
            if self._stopping.hurried:
                return Forced("stopped", "a second Ctrl-C")
            if left == 0:
                return Forced(
                    self._stopping.cause,
                    f"it had not ended {self._grace:g} s after it was asked to",
                )
            if time.monotonic() >= look:
                if self._succession.successor():
                    return Forced("fenced", "the run was taken over")
                self._before = self._before.follow(child.pid)
                look = time.monotonic() + LOOK_SECONDS
            if left is None and (hang := monitor.look()):
                return hang
            self._standbys.look(command, child)
            until_look = min(
                look - time.monotonic(), monitor.seconds_left(), self._standbys.seconds_to_look()
            )
            self._stopping.hear(until_look if left is None else min(left, until_look))
