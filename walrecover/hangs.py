"""Hangs: what stands still for too long, by phase.

Owns the phases of a rank, how long each may take and the verdict; whom it names is `blame`'s.
Pure: `now` and what the ranks say are arguments. Progress is a beat that moved (a step, another
phase); that a process lives says nothing here. A slow step is not a hang: limits are generous,
and only time counts in which somebody watched, so that a machine or a supervisor that slept finds
nobody hanging.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import msgspec

from walrecover.errors import BadInput
from walrecover.events import HangDetected, PhasesMeasured, PhaseTimes

Phase = Literal[
    "starting", "restoring", "training", "snapshot", "between", "ended", "first", "counted"
]
"""What a rank says it is doing. `first`: its first step since it began or resumed. `between`: a
loop with steps has ended, and no step was made since (validation). `counted`: said by nobody, a
hook counts the steps of a script that never attaches (`--adopt`); what it does in between, and
whether its end is that of the command, is not known."""
PHASES: tuple[Phase, ...] = get_args(Phase)

Span = Literal["start-up", "first-step", "step", "between", "snapshot", "shut-down"]
"""What has a limit. It lasts until the beat moves."""
SPANS: tuple[Span, ...] = get_args(Span)
SPAN_OF: dict[Phase, Span] = {
    "starting": "start-up",
    "restoring": "start-up",
    "first": "first-step",
    "training": "step",
    "between": "between",
    "counted": "between",
    "snapshot": "snapshot",
    "ended": "shut-down",
}

FLOORS: dict[Span, float] = {
    "start-up": 3600.0,
    "first-step": 3600.0,
    "step": 900.0,
    "between": 3600.0,
    "snapshot": 1800.0,
    "shut-down": 3600.0,
}
"""The least that is ever learned. A false alarm costs more than a late one: a compilation or an
evaluation that nobody has seen before must fit, and NCCL's own watchdog, whose 10 minutes end in
an error that says more, comes first."""

LONGEST = 3.0
MEDIANS = 30.0
"""Of steps only: of a long validation it would be a day."""
AGAIN = 2.0
GONE_SECONDS = 120.0
"""A rank's process is gone and the command goes on: so long has its launcher to notice."""

KEPT = 255
_GAP = 2.0
_SPENT = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Reading(NamedTuple):
    """A beat. `step`: the last completed one. `at`: monotonic time of the last word, 0 for none."""

    step: int
    phase: Phase
    at: float


class Limits(msgspec.Struct, frozen=True):
    """Seconds that somebody has set, by span; `inf` is never. None: learned, or the floor."""

    start_up: float | None = None
    first_step: float | None = None
    step: float | None = None
    between: float | None = None
    snapshot: float | None = None
    shut_down: float | None = None

    def of(self, span: Span) -> float | None:
        value: float | None = getattr(self, span.replace("-", "_"))
        return value

    @property
    def off(self) -> bool:
        return all(self.of(span) == math.inf for span in SPANS)


def parse(text: str) -> Limits:
    """`auto`, `off`, `10m`, or by span, `step=10m,snapshot=off`; what is not named is learned.

    One value for all leaves start-up out: a script that never attaches would be one start-up.
    Raises BadInput.
    """
    text = text.strip()
    if text == "auto":
        return Limits()
    if "=" not in text:
        seconds = _seconds(text)
        spans = SPANS if seconds == math.inf else SPANS[1:]
        return Limits(**{span.replace("-", "_"): seconds for span in spans})
    found: dict[str, float] = {}
    for item in text.split(","):
        span, _, value = (part.strip() for part in item.partition("="))
        if span not in SPANS or not value:
            raise BadInput(
                f"--hang-timeout {item!r}: give PHASE=TIME, PHASE one of {', '.join(SPANS)}"
            )
        found[span.replace("-", "_")] = _seconds(value)
    return Limits(**found)


def _seconds(text: str) -> float:
    if text == "off":
        return math.inf
    match = _SPENT.fullmatch(text)
    if not match or float(match[1]) <= 0:
        raise BadInput(
            f"--hang-timeout {text!r}: give a time with its unit, such as 30s or 10m, or off"
        )
    return float(match[1]) * _UNITS[match[2]]


class Times:
    """How long the spans of a run took: the newest durations, and the two longest of all."""

    def __init__(self) -> None:
        self._newest: dict[Span, deque[float]] = {}
        self._measured: dict[Span, PhaseTimes] = {}

    def add(self, span: Span, seconds: float) -> None:
        self._newest.setdefault(span, deque(maxlen=KEPT)).append(seconds)
        known = self._measured.get(span, _NONE)
        self._measured[span] = _with(known, PhaseTimes(1, seconds, seconds, 0.0))

    def inherit(self, earlier: Mapping[str, PhaseTimes]) -> None:
        """What an earlier attempt measured."""
        for span in SPANS:
            if span in earlier:
                known = self._measured.get(span, _NONE)
                self._measured[span] = _with(known, earlier[span])

    def of(self, span: Span) -> PhaseTimes | None:
        known = self._measured.get(span)
        newest = self._newest.get(span)
        if known is None or not newest:
            return known
        return msgspec.structs.replace(known, median=statistics.median(newest))

    def measured(self) -> dict[str, PhaseTimes]:
        return {span: known for span in SPANS if (known := self.of(span))}


_NONE = PhaseTimes()


def _with(known: PhaseTimes, more: PhaseTimes) -> PhaseTimes:
    longest = sorted([known.longest, known.second, more.longest, more.second])
    return PhaseTimes(known.count + more.count, more.median, longest[-1], longest[-2])


class Limit(NamedTuple):
    """`why`: "set", "learned" or "floor"."""

    seconds: float
    why: str


def limit_of(span: Span, given: Limits, times: Times) -> Limit:
    """How long a span may take. Where there are several durations, the longest one alone is not
    believed: it may be a hang that came to its end."""
    set_to = given.of(span)
    if set_to is not None:
        return Limit(set_to, "set")
    known, floor = times.of(span), FLOORS[span]
    if known is None:
        return Limit(floor, "floor")
    longest = known.longest if known.count < 3 else known.second
    learned = max(LONGEST * longest, MEDIANS * known.median if span == "step" else 0.0)
    return Limit(learned, "learned") if learned > floor else Limit(floor, "floor")


class Standing(NamedTuple):
    """How long a rank has not moved, in watched seconds. `rank` None: nobody has said a word yet.

    `gone`: its process is.
    """

    rank: int | None
    step: int
    phase: Phase
    at: float
    seconds: float
    gone: bool = False

    @property
    def span(self) -> Span:
        return SPAN_OF[self.phase]


class Watch:
    """One attempt, looked at again and again. Learns durations into `times`."""

    def __init__(self, times: Times, now: float, interval: float) -> None:
        self._times, self._interval = times, interval
        self._began = self._looked = now
        self._seen: dict[int, Reading] = {}
        self._stood: dict[int | None, float] = {None: 0.0}
        self._gone: frozenset[int] = frozenset()

    def look(self, now: float, readings: Mapping[int, Reading], gone: Iterable[int] = ()) -> None:
        """Take in what the ranks say now. A gap that was longer than the looks' own interval was
        nobody's time: the machine or the supervisor slept."""
        passed = min(now - self._looked, _GAP * self._interval)
        self._looked, self._gone = now, frozenset(gone)
        for rank in self._stood:
            self._stood[rank] += passed
        for rank, reading in readings.items():
            before = self._seen.get(rank)
            if reading != before:
                self._learn(before, reading, self._stood.get(rank, 0.0) + self._interval)
                self._seen[rank], self._stood[rank] = reading, 0.0

    def _learn(self, before: Reading | None, now: Reading, watched: float) -> None:
        """`watched`: longer than that it cannot have taken, whatever the clocks say."""
        if before is None or SPAN_OF[before.phase] == "start-up":
            if SPAN_OF[now.phase] != "start-up":
                self._times.add("start-up", max(0.0, now.at - self._began))
            return
        seconds, steps = min(now.at - before.at, watched), max(1, now.step - before.step)
        if seconds > 0:
            span = SPAN_OF[before.phase]
            self._times.add(span, seconds / steps if span == "step" else seconds)

    def standings(self) -> list[Standing]:
        """Of all ranks; of the command itself while no rank has said a word."""
        if not self._seen:
            return [Standing(None, 0, "starting", self._began, self._stood[None])]
        return [
            Standing(rank, *reading, self._stood[rank], rank in self._gone)
            for rank, reading in sorted(self._seen.items())
        ]


class Rules(NamedTuple):
    """What a verdict rests on. `last`: the hang that ended the attempt before. `attaches`: an
    earlier attempt of the run has shown that the command does."""

    given: Limits
    times: Times
    last: HangDetected | None = None
    attaches: bool = False


class Hang(NamedTuple):
    """A verdict. `standings`: of all ranks, those that hang among them."""

    standing: Standing
    limit: Limit
    standings: tuple[Standing, ...]


def judge(standings: Sequence[Standing], rules: Rules) -> Hang | None:
    """Whether some rank hangs.

    A rank that waits for another one, which is still within the limit of a longer span (it writes
    a snapshot, it validates), does not hang. Whoever stood at the same place in the hang that
    ended the attempt before gets twice the time that it had then: if that was a false alarm, the
    next one is not. A process that is gone is missed only where others wait for it: after the
    training the command may have more to do.
    """
    waiting = any(not one.gone and one.phase != "ended" for one in standings)
    for one in standings:
        if one.seconds <= _least(one, rules) or (one.gone and not waiting):
            continue
        limit = _allowed(one, rules)
        if one.seconds > limit.seconds and not any(_excuses(o, one, rules) for o in standings):
            return Hang(one, limit, tuple(standings))
    return None


def _least(one: Standing, rules: Rules) -> float:
    """What no limit of it is below."""
    given = rules.given.of(one.span)
    least = FLOORS[one.span] if given is None else given
    return min(GONE_SECONDS, least) if one.gone else least


def _allowed(one: Standing, rules: Rules) -> Limit:
    limit = limit_of(one.span, rules.given, rules.times)
    if one.rank is None and rules.given.start_up is None and not rules.attaches:
        return Limit(math.inf, "unknown")
    if one.gone:
        ended = one.phase in ("ended", "counted")
        return Limit(math.inf if ended else min(GONE_SECONDS, limit.seconds), "gone")
    last = rules.last
    if last is not None and limit.why != "set" and (last.phase, last.step) == (one.span, one.step):
        return max(limit, Limit(AGAIN * last.seconds, "learned"))
    return limit


def _excuses(other: Standing, one: Standing, rules: Rules) -> bool:
    if other.span in (one.span, "step", "shut-down") or other.gone:
        return False
    return other.seconds <= _allowed(other, rules).seconds


def interval(given: Limits) -> float:
    """Seconds between two looks: a tenth of the shortest limit that can apply, up to five."""
    shortest = min(
        set_to if (set_to := given.of(span)) is not None else FLOORS[span] for span in SPANS
    )
    return min(5.0, max(0.05, shortest / 10))


def learned(measured: PhasesMeasured | None) -> Times:
    """What earlier attempts measured: each of these holds what was measured before it."""
    times = Times()
    if measured is not None:
        times.inherit(measured.phases)
    return times
