"""The recovery flow of a kill: what the journals say happened after it.

Owns finding the events of one recovery and saying them in a line. Reads only.
"""

from __future__ import annotations

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
