"""The recovery flow of a kill: what the journals say happened after it.

Owns finding the events of one recovery and saying them in a line. Reads only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from walrecover import entries as model
from walrecover.entries import AttemptEntry
from walrecover.errors import WalrecoverError
from walrecover.events import RecoveryPlanned, Resumed, StepCompleted, WorkerExited
from walrecover.journal import Reader
from walrecover.rehearse.kill import Strike
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence


class Flow(NamedTuple):
    """One recovery. Times are seconds since the kill; `again`: steps done again.

    `seen`: the supervisor knew of the death. None where a launcher restarted its workers itself.
    """

    seen: float | None
    base: int
    again: int
    restored: float
    training: float


class Flows:
    """Tells what came of each kill, once, as soon as the journals know: `say` gets the flow, or
    None where the attempt went on without the victim."""

    def __init__(self, run: RunDir, say: Callable[[Flow | None], None]) -> None:
        self._run, self._say = run, say
        self._strike: Strike | None = None

    def expect(self, strike: Strike) -> None:
        """A kill was made; what is known of the one before is all that there will be."""
        self.settle(strike.attempt)
        self._strike = strike

    def look(self, attempt: int) -> None:
        """This attempt trains now: tell, if it was the newest kill that led to it."""
        if self._strike is not None and attempt > self._strike.attempt:
            flow = recovery_of(self._run, self._strike)
            if flow is not None:
                self._tell(flow)

    def settle(self, attempt: int | None = None) -> None:
        """Tell of the newest kill now. `attempt`: where the next one was made."""
        if self._strike is not None:
            survived = attempt == self._strike.attempt
            self._tell(None if survived else recovery_of(self._run, self._strike))

    def _tell(self, flow: Flow | None) -> None:
        self._strike = None
        self._say(flow)


def recovery_of(run: RunDir, strike: Strike) -> Flow | None:
    """What followed a kill, or None while that has not come to a completed step."""
    try:
        entry = _next_attempt(run, strike)
        if entry is None:
            return None
        seen = _exit_at(run, strike)
        restored, training = _restart_at(run, entry, strike.rank or 0)
        base = entry.plan.base.step if entry.plan.base else 0
        lost = _lost(run, entry)
    except (WalrecoverError, OSError):
        return None  # it is being written
    if restored is None or training is None:
        return None
    return Flow(
        seen - strike.at if seen else None,
        base,
        # The journal's last events die with the process that had not yet committed them.
        max(0, strike.step - base, lost),
        restored - strike.at,
        training - strike.at,
    )


def _next_attempt(run: RunDir, strike: Strike) -> AttemptEntry | None:
    for entry in model.attempts(Sequence(run.sequence).read()):
        if entry.number > strike.attempt:
            return entry
    return None


def _exit_at(run: RunDir, strike: Strike) -> float | None:
    with Reader(run.stream(strike.attempt, strike.nonce, "supervisor")) as reader:
        for _, event in reader.read():
            if isinstance(event, WorkerExited):
                return event.at
    return None


def _lost(run: RunDir, entry: AttemptEntry) -> int:
    path = run.stream(entry.number, entry.nonce, "supervisor")
    if not path.is_dir():
        return 0  # a launcher has started its workers again by itself
    with Reader(path) as reader:
        for _, event in reader.read():
            if isinstance(event, RecoveryPlanned):
                return event.lost_steps
    return 0


def _restart_at(run: RunDir, entry: AttemptEntry, rank: int) -> tuple[float | None, float | None]:
    restored = None
    with Reader(run.stream(entry.number, entry.nonce, f"rank-{rank}")) as reader:
        for _, event in reader.read():
            if isinstance(event, Resumed):
                restored = event.at
            elif isinstance(event, StepCompleted):
                return restored, event.at
    return restored, None
