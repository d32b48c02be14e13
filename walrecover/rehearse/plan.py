"""The plan of a rehearsal: which kills, drawn from a seed.

Owns the draw and nothing else. Pure: the same arguments give the same kills. Which process a kill
meets and where it really lands is `kill`'s to find out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from walrecover.errors import BadInput
from walrecover.pace import Every

Aim = Literal["snapshot", "step"]

ASIDE = 0.3
"""How often the victim is another process than a rank's: a loader worker, the launcher."""

SNAPSHOTS_PER_KILL = 4
SPARE_SECONDS = 0.2


class Kill(NamedTuple):
    """One kill, to come once `step` is complete and before `until` is.

    `aim`: inside a snapshot, or anywhere in a step. `moment`: which part of it has passed, from 0
    to 1. `pick` chooses among the ranks, or among the other processes where `aside`.
    """

    step: int
    until: int
    aim: Aim
    moment: float
    pick: float
    aside: bool = False


def quota(kills: int) -> int:
    """How many of the kills must land inside a snapshot: a fifth."""
    return -(-kills // 5)


def pace_for(kills: int, steps: int) -> Every:
    """A pace that gives every kill some snapshots of its own."""
    return Every(max(1, steps // (SNAPSHOTS_PER_KILL * kills)), None)


def reach(kills: int, steps: int, step_seconds: float) -> int:
    """The step before which the last kill is to come, somewhat before the end: where steps take
    next to no time, a kill that was drawn for the very last ones would find the run ended."""
    spare = min(steps // 10, math.ceil(SPARE_SECONDS / max(step_seconds, 1e-6)))
    return min(steps, max(steps - spare, kills + 1))


def draw(kills: int, seed: int, steps: int, every: Every) -> tuple[Kill, ...]:
    """Kills spread evenly over a run of so many steps, each later than the one before.

    None comes before the first step is complete or after the last. Raises BadInput where so many
    do not fit, or too few snapshots for the quota.
    """
    if kills > steps - 1:
        raise BadInput(
            f"the run has {steps} steps: --kills can be at most {max(0, steps - 1)}, for a kill "
            f"comes after the first step, before the last, and at a step of its own"
        )
    chance = random.Random(seed)
    edges = [1 + part * (steps - 1) // kills for part in range(kills + 1)]
    parts = [range(low, high) for low, high in pairwise(edges)]
    inside = _choose_inside(chance, [_snapshots(part, every) for part in parts], every)
    # Where it can be had, a snapshot is left for another try.
    drawn = [
        chance.choice(inside[index][:-1] or inside[index] if index in inside else part)
        for index, part in enumerate(parts)
    ]
    return tuple(
        Kill(
            step=step,
            until=until,
            aim="snapshot" if index in inside else "step",
            moment=chance.random(),
            pick=chance.random(),
            # A snapshot is what a rank is in: only its own death lands inside one.
            aside=chance.random() < ASIDE and index not in inside,
        )
        for index, (step, until) in enumerate(pairwise([*drawn, steps]))
    )


def _snapshots(part: range, every: Every) -> range:
    """The steps of a part of the run that will be captured. A pace in seconds promises no step for
    any, so it may be expected everywhere."""
    if every.steps is None:
        return part
    return range(-(-part.start // every.steps) * every.steps, part.stop, every.steps)


def _choose_inside(
    chance: random.Random, snapshots: Sequence[range], every: Every
) -> dict[int, range]:
    """The kills to aim at a snapshot, by index, each with the snapshots of its part."""
    possible = [index for index, steps in enumerate(snapshots) if steps]
    needed = quota(len(snapshots))
    if len(possible) < needed:
        raise BadInput(
            f"only {len(possible)} of {len(snapshots)} kills would find a snapshot, and {needed} "
            f"must land inside one: a pace of {every.steps} steps is too slow for this run. Give "
            f"a smaller --every, or fewer --kills"
        )
    # Some to spare, and not the last one where that can be had: a miss can still be made up.
    wanted = min(len(possible), needed + len(snapshots) // 10)
    early = possible[:-1] if len(possible) > wanted else possible
    return {index: snapshots[index] for index in chance.sample(early, wanted)}


def aim_of(plan: Sequence[Kill], index: int, inside: int) -> Kill:
    """The kill to make now, `inside` of those before having landed inside a snapshot.

    Where those that are left would not meet the quota, it is aimed at a snapshot as well.
    """
    kill = plan[index]
    planned = sum(later.aim == "snapshot" for later in plan[index:])
    if kill.aim == "step" and quota(len(plan)) - inside > planned:
        return kill._replace(aim="snapshot", aside=False)
    return kill


def shortcomings(kills: int, landed: int, inside: int) -> list[str]:
    """What the kills that were made lack of those that were asked for."""
    if landed < kills:
        return [
            f"only {landed} of {kills} kills landed before the run ended: give fewer --kills, or "
            f"a longer run"
        ]
    if inside < quota(kills):
        return [
            f"only {inside} of {kills} kills landed inside a snapshot, and {quota(kills)} must: "
            f"give a smaller --every"
        ]
    return []
