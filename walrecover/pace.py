"""Which steps are captured: a pure function of the step and of what was announced ahead (rule 7).

No clock is read here. Rank 0 measures, chooses a pace with `choose`, and publishes it for a step
that no rank has passed; then every rank computes the same answer by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from walrecover.errors import BadInput

DEFAULT = "30s"
_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|step|steps)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Every(NamedTuple):
    """How often to snapshot: one of the two is set."""

    steps: int | None
    seconds: float | None


class Pace(NamedTuple):
    """Multiples of `every` are captured from `from_step` on."""

    from_step: int
    every: int


def parse(text: str) -> Every:
    """`30s`, `5m`, `100steps`. Raises BadInput: a bare number has no unit."""
    match = _EVERY.fullmatch(text.strip())
    if not match:
        raise BadInput(f"--every {text!r}: give a number and its unit, such as 30s, 5m or 100steps")
    number, unit = float(match[1]), match[2]
    if unit.startswith("step"):
        if number < 1 or number != int(number):
            raise BadInput(f"--every {text!r}: a number of steps is a whole number from 1")
        return Every(int(number), None)
    if number <= 0:
        raise BadInput(f"--every {text!r}: the time must be more than zero")
    return Every(None, number * _SECONDS[unit])


def is_due(step: int, paces: Sequence[Pace]) -> bool:
    """Whether this step's boundary is captured.

    A power of two while no pace is known, else a multiple of the newest pace whose `from_step`
    has come. `paces` are in order of publication.
    """
    for pace in reversed(paces):
        if step >= pace.from_step:
            return step % pace.every == 0
    return step & (step - 1) == 0


def choose(seconds_per_step: float, every: Every) -> int:
    """The number of steps between two snapshots that comes nearest to `every`."""
    if every.steps is not None:
        return every.steps
    assert every.seconds is not None
    return max(1, round(every.seconds / max(seconds_per_step, 1e-9)))
