"""When the kills come: at random, at one rate, from a seed."""

from __future__ import annotations

import random


def gaps(seed: int, per_minute: float, kills: int) -> list[float]:
    """Seconds of training before each kill, exponential with a mean of 60 / `per_minute`."""
    draw = random.Random(seed)
    return [draw.expovariate(per_minute / 60.0) for _ in range(kills)]


def steps_for(between: list[float], step_seconds: float, per_epoch: int) -> int:
    """So many steps that the last kill comes before a bare loop could have made them: in whole
    epochs, with a tenth to spare."""
    needed = 1.1 * sum(between) / step_seconds
    return per_epoch * (int(needed / per_epoch) + 1)
