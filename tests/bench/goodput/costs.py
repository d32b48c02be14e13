"""What a contender loses: by a save, by a kill; and what that comes to at any rate of kills.

Pure. Times are in seconds. The rare rates are replayed from the measured costs on a schedule of
their own, since nobody waits a fortnight for a kill.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from tests.bench.goodput.steplog import StepLog
from walrecover import pace

REPLAYED_KILLS = 2000
COLD_STEPS = 2
"""The first steps of a process, which pay for its warming up, are no measure of a step."""


class Kill(NamedTuple):
    """What one kill cost. `down`: from the last completed step to the next one, less a step.
    `again`: steps made again. `notice`: from the kill to the first line of a new process, None
    where one stood ready. `step`: the last one before it."""

    step: int
    down: float
    again: int
    notice: float | None


class Saving(NamedTuple):
    """`cost`: training time lost by one save. `base`: seconds that each step takes more than a
    bare one, whether or not it saves."""

    cost: float
    base: float


class Costs(NamedTuple):
    """All that a replay needs. `bare`: a step of the bare loop. `late`: steps that the newest
    save is older than the newest one due, in the mean."""

    bare: float
    saving: Saving
    down: tuple[float, ...]
    late: float


def intervals(log: StepLog) -> list[tuple[int, float]]:
    """Seconds of each step, by its number; the first ones of each process are left out."""
    found = []
    for steps in log.attempts():
        warm = steps[COLD_STEPS:]
        found += [(after.number, after.at - before.at) for before, after in pairwise(warm)]
    return found


def median_step(logs: Sequence[StepLog]) -> float:
    return statistics.median(seconds for log in logs for _, seconds in intervals(log))


def saving(log: StepLog, every: int, bare: float) -> Saving:
    """From an undisturbed run that saved every `every` steps. The second half of the steps
    between two saves is taken to be free of them: what all steps of a window took beyond that is
    the save's. No save is free: one that is lost in the noise is taken to cost as much as it."""
    steps = [(number, seconds) for number, seconds in intervals(log) if number > every]
    quiet = statistics.median(s for n, s in steps if (n - 1) % every >= every // 2)
    windows: dict[int, list[float]] = {}
    for number, seconds in steps:
        windows.setdefault((number - 1) // every, []).append(seconds - quiet)
    beyond = [sum(window) for window in windows.values() if len(window) == every]
    return Saving(max(error(beyond), statistics.median(beyond)), max(0.0, quiet - bare))


def error(sample: Sequence[float]) -> float:
    """The standard error of their median, from their quartiles: as if they were normal."""
    if len(sample) < 2:
        return 0.0
    low, _, high = statistics.quantiles(sample, n=4, method="inclusive")
    return 1.253 * (high - low) / 1.349 / math.sqrt(len(sample))


def best_every(saving: Saving, bare: float, between: float) -> int:
    """Steps between two saves that lose least where a kill comes every `between` seconds."""
    return max(1, round(pace.optimum(saving.cost, between) / (bare + saving.base)))


def kills(log: StepLog, killed: Sequence[tuple[float, int]], bare: float) -> list[Kill]:
    """What each kill cost. `killed`: when, and which process."""
    found = []
    for at, pid in killed:
        last = [step for step in log.steps if step.pid == pid][-1]
        first = next(step for step in log.steps if step.at > at and step.pid != pid)
        begun = log.begun[first.pid]
        found.append(
            Kill(
                step=last.number,
                down=first.at - last.at - bare,
                again=last.number - (first.number - 1),
                notice=begun - at if begun > at else None,
            )
        )
    return found


def goodput(useful: int, bare: float, wall: float) -> float:
    return useful * bare / wall


def measured(log: StepLog, bare: float) -> float:
    """The goodput of a whole run, from its first completed step to its last."""
    first, last = log.steps[0], log.steps[-1]
    return goodput(last.number - first.number, bare, last.at - first.at)


def late(found: Sequence[Kill], every: int) -> float:
    """How many steps more than half an interval were made again in the mean: a save that is not
    whole yet when the kill comes is none."""
    return max(0.0, statistics.mean(kill.again for kill in found) - (every - 1) / 2)


def replay(costs: Costs, between: float, seed: int) -> float:
    """The goodput where a kill comes every `between` seconds of training, saving at the pace that
    is best for it."""
    every = best_every(costs.saving, costs.bare, between)
    step = costs.bare + costs.saving.base + costs.saving.cost / every
    draw = random.Random(seed)
    useful, wall = 0.0, 0.0
    for _ in range(REPLAYED_KILLS):
        made = int(draw.expovariate(1.0 / between) / step)
        again = min(made, made % every + costs.late)
        useful += made - again
        wall += made * step + draw.choice(costs.down)
    return goodput(1, costs.bare, wall / useful) if useful else 0.0
