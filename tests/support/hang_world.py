"""A virtual world of training jobs for the hang detector: time is a number, beats are drawn.

Owns the jobs, what is planted in them, and the count of what was found; the detector is
`walrecover.hangs`' own functions, looked at as the supervisor does. The steps' times are recorded
ones (recorded_steps.json: every step of a run of examples/char_gpt.py, from its journal) over
their median, drawn again and scaled to the job's own pace. What a recording of minutes cannot hold
is synthetic: rare stalls with a heavy tail without a bound, evaluations inside the loop, validation
between loops, snapshots, compilation.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from walrecover import hangs
from walrecover.events import HangDetected, PhasesMeasured
from walrecover.hangs import Limits, Phase, Reading, Rules, Times, Watch

RECORDED = Path(__file__).with_name("recorded_steps.json")
HOUR = 3600.0
STARTING: tuple[Phase, ...] = ("first", "restoring")
PACES = (0.2, 0.5, 1.0, 3.0, 10.0, 60.0)
STALLS_AN_HOUR, STALL_SECONDS, STALL_TAIL = 4.0, 5.0, 2.0
"""How often a step stalls, for how long at least, and the exponent of its Pareto tail."""

SLOWEST = 10.0


class Move(NamedTuple):
    """From `at` on a rank's beat says this."""

    at: float
    reading: Reading


class Plant(NamedTuple):
    """`hang`: from the first move in this phase after `at` on, nothing moves. `slow`: 40 steps
    take `much` times as long, evaluations included. `pause`: one takes `much` seconds more.
    `sleep`: nobody looks for `much` seconds, in which the training does not move either."""

    at: float
    kind: str
    phase: Phase
    much: float


class Found(NamedTuple):
    """A hang that was found: how late, in limits of its phase."""

    span: str
    seconds: float
    limit: float

    @property
    def lateness(self) -> float:
        return self.seconds / self.limit


class Counts(NamedTuple):
    hours: float
    hangs: list[Found]
    false_alarms: list[str]
    planted: dict[str, int]
    steps: int


def recorded_ratios() -> list[float]:
    """Every recorded step over the median step."""
    seconds = json.loads(RECORDED.read_text())["step_seconds"]
    median = statistics.median(seconds)
    return [one / median for one in seconds]


class Job:
    """One run through all its attempts. Everything is drawn from `draw`."""

    def __init__(self, draw: random.Random, ratios: list[float]) -> None:
        self.draw, self.ratios = draw, ratios
        self.pace = draw.choice(PACES)
        self.start_up = draw.lognormvariate(3.5, 1.0)  # half a minute
        self.compiling = draw.lognormvariate(4.0, 1.2)  # a minute, seldom twenty
        self.saving = draw.lognormvariate(2.5, 1.5)  # 12 s, seldom eleven minutes
        self.validating = draw.lognormvariate(4.5, 1.2)  # 90 s, seldom half an hour
        self.evaluating = draw.choice([0.0, draw.uniform(5, 60) * min(self.pace, 5.0)])
        self.epoch = draw.randint(200, 5000)
        self.step = 0
        self.steps = 0
        self.slow_left, self.slow_by, self.pause = 0, 1.0, 0.0

    def some(self, seconds: float) -> float:
        return seconds * self.draw.lognormvariate(0.0, 0.2)

    def step_seconds(self) -> float:
        seconds = self.pace * self.draw.choice(self.ratios)
        if self.draw.random() < self.pace * STALLS_AN_HOUR / HOUR:
            seconds += STALL_SECONDS * self.draw.paretovariate(STALL_TAIL)
        if self.evaluating and self.step % 500 == 499:
            seconds += self.some(self.evaluating)
        if self.slow_left:
            self.slow_left -= 1
            seconds *= self.slow_by
        seconds, self.pause = seconds + self.pause, 0.0
        return seconds

    def moves(self, now: float) -> Iterator[Move]:
        """The beats of one attempt that begins now, without end."""
        self.step -= self.step % 100  # the last snapshot
        self.slow_left, self.pause = 0, 0.0

        def say(phase: Phase) -> Move:
            return Move(now, Reading(self.step, phase, now))

        now += self.some(self.start_up) / 2
        yield say("restoring")
        now += self.some(self.start_up) / 2
        yield say("first")
        now += self.some(self.compiling)
        saved = now
        while True:
            self.step += 1
            self.steps += 1
            yield say("training")
            if now - saved > HOUR / 2:
                yield say("snapshot")
                now += self.some(self.saving)
                saved = now
                yield say("training")
            if self.step % self.epoch == 0:
                yield say("between")
                now += self.some(self.validating)
            now += self.step_seconds()


def plants(draw: random.Random, hours: float, hung: int, slow: int, asleep: int) -> list[Plant]:
    phases: list[Phase] = ["training"] * 5 + ["between", "snapshot", "first", "restoring"]
    found = []
    for _ in range(hung):
        found.append(Plant(draw.uniform(0, hours) * HOUR, "hang", draw.choice(phases), 0.0))
    for _ in range(slow):
        kind = draw.choice(["slow", "pause"])
        much = draw.uniform(2, SLOWEST) if kind == "slow" else 10 * 40 ** draw.random()
        found.append(Plant(draw.uniform(0, hours) * HOUR, kind, "training", much))
    for _ in range(asleep):
        much = draw.uniform(0.1, 10) * HOUR
        found.append(Plant(draw.uniform(0, hours) * HOUR, "sleep", "training", much))
    return sorted(found)


def simulate(
    seed: int, hours: float, *, hung: int, slow: int, asleep: int = 0, hours_each: float = 25.0
) -> Counts:
    """Watch jobs for so many virtual hours, with so many hangs, stragglers and sleeps in them."""
    draw, ratios = random.Random(seed), recorded_ratios()
    jobs = max(1, round(hours / hours_each))
    shares = [[n // jobs + (i < n % jobs) for i in range(jobs)] for n in (hung, slow, asleep)]
    counts = Counts(hours, [], [], {"hangs": hung, "stragglers": slow, "sleeps": asleep}, 0)
    for share in zip(*shares, strict=True):
        each = hours / jobs
        counts = _watched(Job(draw, ratios), plants(draw, each, *share), each * HOUR, counts)
    return counts


class _State:
    """Where one job stands: its beats, what is planted, and since when it hangs."""

    def __init__(self, job: Job, planted: list[Plant]) -> None:
        self.job, self.planted = job, planted
        self.hung_at: float | None = None
        self.hung_in = ""
        self.begin(0.0)

    def begin(self, now: float) -> None:
        self.moves = self.job.moves(now)
        self.next = next(self.moves)
        self.reading: Reading | None = None
        self.hung_at = None

    def has_begun(self) -> bool:
        return self.reading is not None and self.reading.phase != "restoring" and not self.hung_at

    def advance(self, now: float, shift: float) -> Reading | None:
        """The newest beat at `now`. `shift`: how long the training has slept."""
        while self.hung_at is None and self.next.at + shift <= now:
            at = self.next.at + shift
            self.reading = self.next.reading._replace(at=at)
            self._plant(at)
            self.next = next(self.moves)
        return self.reading

    def _plant(self, at: float) -> None:
        due = self.planted[0] if self.planted else None
        assert self.reading is not None
        if due is None or due.kind == "sleep" or due.at > at or due.phase != self.reading.phase:
            return
        self.planted.pop(0)
        if due.kind == "hang":
            self.hung_at, self.hung_in = self.next.at, hangs.SPAN_OF[due.phase]
        elif due.kind == "slow":
            self.job.slow_left, self.job.slow_by = 40, due.much
        else:
            self.job.pause = due.much


def _watched(job: Job, planted: list[Plant], until: float, counts: Counts) -> Counts:
    """One job. A hang that is due in a phase which the attempt does not reach again (its start)
    begins a new attempt, as a crash would."""
    state, draw = _State(job, planted), job.draw
    given, times = Limits(), Times()
    every = hangs.interval(given)
    last: HangDetected | None = None
    now, shift = 0.0, 0.0
    watch = Watch(times, now, every)
    while now < until or state.hung_at is not None or state.planted:
        now += every * draw.uniform(1.0, 1.3)
        due = state.planted[0] if state.planted else None
        if due and due.at <= now and due.kind == "sleep":
            state.planted.pop(0)
            now, shift = now + due.much, shift + due.much
        elif due and due.at <= now and due.phase in STARTING and state.has_begun():
            state.begin(now - shift)
            watch = Watch(times, now, every)
        reading = state.advance(now, shift)
        watch.look(now, {0: reading} if reading else {})
        hang = hangs.judge(watch.standings(), Rules(given, times, last, attaches=True))
        if hang is None:
            continue
        if state.hung_at is None:
            counts.false_alarms.append(f"{hang.standing} in a job of {job.pace} s a step")
        else:
            limit = hangs.limit_of(hang.standing.span, given, times).seconds
            counts.hangs.append(Found(state.hung_in, now - shift - state.hung_at, limit))
        one = hang.standing
        last = HangDetected(
            phase=one.span, step=one.step, seconds=one.seconds, limit=hang.limit.seconds
        )
        times = hangs.learned(PhasesMeasured(phases=times.measured()))
        state.begin(now - shift)
        watch = Watch(times, now, every)
    return counts._replace(steps=counts.steps + job.steps)
