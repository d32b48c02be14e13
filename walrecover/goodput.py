"""Where a run's wall time went: seven kinds of time that add up to it.

Pure. Owns laying what the streams say on one line of time, without a gap and without an overlap,
so that the sum is the wall time by construction. What one stream says is kept by `spent`, step by
step; here it is looked at attempt by attempt. Each rank has a line of its own, and the run's is
their mean. Times are the events' `at`: a boundary that another clock puts before the one ahead of
it is taken to be at that one (specs/17-goodput.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from walrecover import entries as model
from walrecover.entries import AttemptEntry
from walrecover.events import RestartDecided, WorkerExited
from walrecover.pace import Known, Rate
from walrecover.spent import Spent
from walrecover.state import RunState, StreamRecord

Kind = Literal[
    "productive", "reexecuted", "capture_stall", "detection", "restart", "restore", "idle"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

HARMLESS = ("done", "stopped", "preempted", "fenced", "unusable")
"""Ends of attempts that are no failures: nothing that could be foreseen was lost."""

_SUPERVISOR = "supervisor"


class Goodput(NamedTuple):
    """`wall` and `seconds` (by kind) in seconds, `seconds` adding up to `wall`. `attempts`: the
    same by attempt's label. `cost`: what a capture takes from the loop, None before the first.
    """

    wall: float
    seconds: dict[Kind, float]
    attempts: dict[str, dict[Kind, float]]
    cost: float | None
    rate: Rate

    @property
    def share(self) -> float:
        """Productive time over wall time."""
        return self.seconds["productive"] / self.wall if self.wall > 0 else 0.0


class _Attempt(NamedTuple):
    """One attempt. `furthest`: the highest step that some attempt before it had completed.
    `begun`: its first event. `ended`, `decided`: what the supervisor said of its end, if it did.
    """

    entry: AttemptEntry
    begun: float
    planning: float
    ranks: list[StreamRecord]
    furthest: int
    latest: float
    ended: WorkerExited | None = None
    decided: RestartDecided | None = None
    died: float | None = None


class _Line:
    """One rank's time, laid from its beginning to its end."""

    def __init__(self, begin: float, end: float) -> None:
        self.at, self._end = begin, max(begin, end)
        self.seconds: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)

    def until(self, at: float, kind: Kind) -> None:
        """The time up to there, if it was not there yet, was of this kind."""
        at = min(at, self._end)
        if at > self.at:
            self.seconds[kind] += at - self.at
            self.at = at

    def training(self, spent: Spent, last: int, furthest: int) -> None:
        """The time up to the last step: steps done again are those up to `furthest`."""
        begin = self.at
        again = spent.through(furthest, last)
        parts: dict[Kind, float] = {
            "reexecuted": again,
            "productive": spent.trained - again,
            "capture_stall": spent.stalled,
        }
        self.until(spent.last, "productive")
        passed, known = self.at - begin, sum(parts.values())
        self.seconds["productive"] -= passed
        if known <= 0:
            parts, known = {"productive": 1.0}, 1.0
        for kind, part in parts.items():
            self.seconds[kind] += passed * part / known

    def rest(self, kind: Kind) -> None:
        self.until(self._end, kind)


def split(state: RunState, now: float | None = None) -> Goodput | None:
    """Split the wall time of a run, from its first event to its last one, or to `now` where the
    run is alive. None where no rank has attached: then nothing is known of its steps.
    """
    found = list(_attempts(state))
    if not any(record.begun for attempt in found for record in attempt.ranks):
        return None
    end = max(attempt.latest for attempt in found) if now is None else now
    total: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    by_attempt: dict[str, dict[Kind, float]] = {}
    begin = at = found[0].begun
    failures = 0
    exposed = 0.0
    for attempt, follower in pairwise([*found, None]):
        assert attempt is not None
        until = max(at, follower.begun if follower else end)
        seconds = _of_attempt(attempt, follower, at, until, alive=now is not None)
        by_attempt[attempt.entry.label] = seconds
        for kind, part in seconds.items():
            total[kind] += part
        failures += _failed(attempt, over=follower is not None or now is None)
        exposed += sum(seconds[kind] for kind in ("productive", "reexecuted", "capture_stall"))
        at = until
    cost = _cost(found)
    return Goodput(at - begin, total, by_attempt, cost, Rate(failures, exposed))


def known(state: RunState) -> Known:
    """What the run's past teaches of its pace, all of its attempts being over."""
    found = split(state)
    return Known(found.rate, found.cost) if found else Known()


def _attempts(state: RunState) -> Iterator[_Attempt]:
    """The attempts in their order. The word of a supervisor counts for the newest of those that
    its workers began: torchrun starts its own without telling it."""
    streams: dict[tuple[int, str], dict[str, StreamRecord]] = {}
    for key, record in state.records.items():
        streams.setdefault((key.attempt, key.nonce), {})[key.writer] = record
    entries = model.attempts(state.entries)
    furthest = 0
    notes: StreamRecord | None = None
    for entry, follower in pairwise([*entries, None]):
        assert entry is not None
        own = streams.get((entry.number, entry.nonce), {})
        notes = own.get(_SUPERVISOR, notes if entry.holder.supervisor else None)
        found = _attempt(entry, own, furthest)
        if follower is None or _SUPERVISOR in streams.get((follower.number, follower.nonce), {}):
            found = _ended(found, notes)
        yield found._replace(died=_death(found, notes))
        furthest = max([furthest, *(record.last_step for record in found.ranks)])


def _attempt(entry: AttemptEntry, own: dict[str, StreamRecord], furthest: int) -> _Attempt:
    ranks = [record for writer, record in sorted(own.items()) if writer.startswith("rank-")]
    began = [record.begun.at for record in own.values() if record.begun and record.begun.at]
    planned = [record.planned.seconds for record in own.values() if record.planned]
    world = max((record.begun.world for record in ranks if record.begun), default=1)
    absent = [StreamRecord() for _ in range(world - len(ranks))]
    begun = min(began, default=entry.at)
    latest = max((record.latest for record in own.values()), default=begun)
    return _Attempt(
        entry, begun, max(planned, default=0.0), ranks + absent, furthest, max(begun, latest)
    )


def _ended(attempt: _Attempt, notes: StreamRecord | None) -> _Attempt:
    """With what its supervisor said of its end."""
    if notes is None:
        return attempt
    return attempt._replace(
        ended=notes.exited[-1] if notes.exited else None,
        decided=notes.decided[-1] if notes.decided else None,
    )


def _death(attempt: _Attempt, notes: StreamRecord | None) -> float | None:
    """When it began to be dead, as far as is known: from when a rank stood still that hung; else
    the first exception, or what the supervisor saw. None where nobody was there to say."""
    ended = attempt.ended
    if ended and ended.cause == "hang" and notes and notes.hangs:
        return notes.hangs[-1].at - notes.hangs[-1].seconds
    known = [record.raised[0].at for record in attempt.ranks if record.raised]
    if ended:
        known.append(ended.seen or ended.at)
    return min(known, default=None)


def _of_attempt(
    attempt: _Attempt, follower: _Attempt | None, begin: float, end: float, *, alive: bool
) -> dict[Kind, float]:
    """The mean over its ranks."""
    mean: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for record in attempt.ranks:
        line = _Line(begin, end)
        doing = _until_death(line, attempt, record, over=follower is not None or not alive)
        _after_death(line, attempt, follower, doing)
        for kind, part in line.seconds.items():
            mean[kind] += part / len(attempt.ranks)
    return mean


def _until_death(line: _Line, attempt: _Attempt, record: StreamRecord, *, over: bool) -> Kind:
    """Lay a rank's time as far as its attempt was at work, and as what came of its end. Returns
    what comes behind it. `over`: that is known to be the past."""
    doing: Kind = "restart"
    if record.begun:
        line.until(record.begun.at, "restart")
        doing = "restore"
        if record.spent.since:
            line.until(record.spent.since, "restore")
            line.training(record.spent, record.last_step, attempt.furthest)
            doing = "productive"
    whole = record.stopped or record.finished
    if whole:
        line.until(whole.at, "capture_stall")
        return "idle"
    if doing == "productive" and (attempt.died is not None or over):
        doing = "reexecuted"  # the step that the death cut short
    if attempt.died is None:
        if over:  # no further than its ranks were heard of: what follows is anybody's guess
            heard = max((rank.latest for rank in attempt.ranks), default=0.0)
            line.until(heard or attempt.latest, doing)
        return "idle" if over else doing
    ended = attempt.ended
    line.until(attempt.died, "idle" if ended and ended.cause == "done" else doing)
    if record.salvaged and record.salvaged[-1].saved:
        line.until(record.salvaged[-1].at, "capture_stall")
    known = [event.at for event in (ended, attempt.decided) if event]
    line.until(max(known, default=line.at), "detection")
    return "idle" if over or attempt.decided else "detection"


def _after_death(line: _Line, attempt: _Attempt, follower: _Attempt | None, doing: Kind) -> None:
    """Lay the time until the next attempt began, or until the end."""
    decided = attempt.decided
    goes_on = decided is not None and decided.action != "stop"
    if decided and goes_on:
        line.until(decided.at + decided.delay, "idle")
    if follower is None:
        line.rest("restart" if goes_on else doing)
        return
    mine = attempt.entry.holder.supervisor
    if not mine or follower.entry.holder.supervisor != mine:
        line.until(follower.begun - follower.planning, "idle")
    line.rest("restart")


def _failed(attempt: _Attempt, *, over: bool) -> bool:
    """Whether the attempt lost steps by its end: it had made some, and was neither asked to end
    nor saved on the way out."""
    ended = attempt.ended
    if not (over or ended) or not any(record.steps for record in attempt.ranks):
        return False
    if any(record.stopped or record.finished for record in attempt.ranks):
        return False
    if any(salvage.saved for record in attempt.ranks for salvage in record.salvaged):
        return False
    return ended is None or ended.cause not in HARMLESS


def _cost(attempts: Sequence[_Attempt]) -> float | None:
    """Mean seconds of a capture."""
    spent = [record.spent for attempt in attempts for record in attempt.ranks]
    captures = sum(each.captures for each in spent)
    return sum(each.capturing for each in spent) / captures if captures else None
