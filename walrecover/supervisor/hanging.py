"""Hangs of one attempt, as the supervisor watches for them while it waits for the command.

Owns when the beats are looked at, what is journaled of them, and the inquest. The verdict is
`hangs`', ending the command the caller's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from walrecover import blame, hangs
from walrecover.beats import Page, find_beats
from walrecover.causes import Forced
from walrecover.entries import AttemptEntry
from walrecover.events import Event, HangDetected, PhasesMeasured
from walrecover.hangs import Hang, Limits, Reading, Rules
from walrecover.processes import started_at
from walrecover.rundir import RunDir
from walrecover.state import RunState
from walrecover.supervisor.inquest import Inquest, Pause, tracer_of
from walrecover.supervisor.notes import WRITER, say

NOTE_SECONDS = 900.0
"""Between two notes of what was measured: a supervisor that is killed loses so much of it."""


def _rules(given: Limits, state: RunState) -> Rules:
    """What the attempts before this one teach."""
    supervisors = [r for key, r in sorted(state.records.items()) if key.writer == WRITER]
    measured = [record.measured for record in supervisors if record.measured]
    return Rules(
        given=given,
        times=hangs.learned(measured[-1] if measured else None),
        last=supervisors[-1].hangs[-1] if supervisors and supervisors[-1].hangs else None,
        attaches=any(record.resumed for record in state.records.values()),
    )


class Monitor:
    """One attempt. `newest`: the attempt whose ranks are at work, torchrun's own included."""

    def __init__(
        self,
        run: RunDir,
        given: Limits,
        state: RunState,
        newest: Callable[[], AttemptEntry],
        append: Callable[[Event], None],
        pause: Pause,
    ) -> None:
        self._run, self._newest, self._append, self._pause = run, newest, append, pause
        self._rules = _rules(given, state)
        self._every = hangs.interval(given)
        now = time.monotonic()
        self._next, self._noted = now + self._every, now
        self._label = ""
        self._pages: dict[int, Page] = {}
        self._pids: dict[int, tuple[int, float]] = {}
        self._watch = hangs.Watch(self._rules.times, now, self._every)

    def seconds_left(self) -> float:
        """Until the next look."""
        return max(0.0, self._next - time.monotonic())

    def look(self) -> Forced | None:
        """Look where it is time to; the reason to end the command, where some rank hangs."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + self._every
        self._follow(now)
        self._watch.look(now, self._readings(), self._gone())
        if now >= self._noted + NOTE_SECONDS:
            self.note()
        hang = hangs.judge(self._watch.standings(), self._rules)
        return None if hang is None or self._is_debugged(now) else self._found(hang)

    def note(self) -> None:
        """Journal what was measured."""
        self._noted = time.monotonic()
        measured = self._rules.times.measured()
        if measured:
            self._append(PhasesMeasured(at=time.time(), phases=measured))

    # -- the ranks ------------------------------------------------------------------------------

    def _follow(self, now: float) -> None:
        """Open the pages of ranks that have come; all anew where torchrun began another attempt."""
        entry = self._newest()
        self._meeting = self._run.meeting(entry.number, entry.nonce)
        self._artefacts = self._run.artefacts(entry.number, entry.nonce)
        if entry.label != self._label:
            for page in self._pages.values():
                page.close()
            if self._pages:
                self._watch = hangs.Watch(self._rules.times, now, self._every)
            self._label, self._pages, self._pids = entry.label, {}, {}
        for rank, path in find_beats(self._meeting).items():
            if rank not in self._pages:
                self._open(rank, path)
            elif (page := self._pages[rank]).pid != self._pids.get(rank, (page.pid,))[0]:
                self._meet(rank, page)  # the next process of a command that has several

    def _open(self, rank: int, path: Path) -> None:
        try:
            page = Page(path)
        except (OSError, ValueError):
            return  # not written yet
        if not page.pid:
            page.close()
            return
        self._pages[rank] = page
        self._meet(rank, page)

    def _meet(self, rank: int, page: Page) -> None:
        started = started_at(page.pid)
        if started is not None:
            self._pids[rank] = (page.pid, started)

    def _readings(self) -> dict[int, Reading]:
        return {rank: page.read() for rank, page in self._pages.items()}

    def _gone(self) -> list[int]:
        """Ranks whose process was here once."""
        return [rank for rank, (pid, started) in self._pids.items() if started_at(pid) != started]

    def _is_debugged(self, now: float) -> bool:
        """Whether somebody looks into a rank with a debugger: then time begins anew."""
        for rank, (pid, _) in self._pids.items():
            if tracer := tracer_of(pid):
                say(f"rank {rank} stands still while process {tracer} traces it: it is left alone")
                self._watch = hangs.Watch(self._rules.times, now, self._every)
                return True
        return False

    # -- the hang -------------------------------------------------------------------------------

    def _found(self, hang: Hang) -> Forced:
        """Save what can be known of it, and say it."""
        say("the command makes no progress: its stacks are saved, then it ends")
        inquest = Inquest(
            self._meeting, {r: pid for r, (pid, _) in self._pids.items()}, self._pause
        )
        inquest.hold()
        one, reason = blame.describe(hang, inquest.conditions, self._rules.times)
        try:
            files = inquest.write(self._artefacts, reason)
        except OSError as error:
            say(f"the stacks cannot be kept: {error}")
            files = []
        names = tuple(os.path.relpath(path, self._run.path) for path in files)
        if names:
            reason += f"; stacks in {self._artefacts}"
        self._append(
            HangDetected(
                at=time.time(),
                phase=one.span,
                seconds=one.seconds,
                limit=hang.limit.seconds,
                rank=one.rank,
                step=one.step,
                reason=reason,
                artefacts=names,
            )
        )
        return Forced("hang", reason, names)
