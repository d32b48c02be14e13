"""Which steps are captured: a pure function of the step and of what was announced ahead (rule 7).

No clock is read here. Rank 0 measures, chooses a pace with `choose`, and publishes it for a step
that no rank has passed; then every rank computes the same answer by itself. What the best pace is
follows from what a capture costs and how often a run fails (`optimum`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from walrecover.errors import BadInput

DEFAULT = "30s"
AUTO = "auto"
_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|step|steps)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Every(NamedTuple):
    """How often to snapshot: one of the two is set. `auto`: `seconds` only as long as it is not
    known how often the run fails."""

    steps: int | None
    seconds: float | None
    auto: bool = False


class Pace(NamedTuple):
    """Multiples of `every` are captured from `from_step` on."""

    from_step: int
    every: int


class Rate(NamedTuple):
    """How often a run has failed, in so many seconds in which it trained."""

    failures: int
    seconds: float

    def between(self, more: float = 0.0) -> float | None:
        """Seconds from one failure to the next, in the mean; None where there was none. `more`:
        seconds that have passed since without one."""
        return (self.seconds + more) / self.failures if self.failures else None


class Known(NamedTuple):
    """What a run's past teaches of its pace. `cost`: seconds that a capture took from the loop;
    None where there was none."""

    rate: Rate = Rate(0, 0.0)
    cost: float | None = None


def parse(text: str) -> Every:
    """`30s`, `5m`, `100steps`, `auto`. Raises BadInput: a bare number has no unit."""
    if text.strip() == AUTO:
        return parse(DEFAULT)._replace(auto=True)
    match = _EVERY.fullmatch(text.strip())
    if not match:
        raise BadInput(
            f"--every {text!r}: give a number and its unit, such as 30s, 5m or 100steps, or auto"
        )
    number, unit = float(match[1]), match[2]
    if unit.startswith("step"):
        if number < 1 or number != int(number):
            raise BadInput(f"--every {text!r}: a number of steps is a whole number from 1")
        return Every(int(number), None)
    if number <= 0:
        raise BadInput(f"--every {text!r}: the time must be more than zero")
    return Every(None, number * _SECONDS[unit])


def parse_memory(text: str) -> int:
    """`1step`, `10steps`: steps between two captures that are kept in memory. Raises BadInput."""
    match = _EVERY.fullmatch(text.strip())
    if not match or not match[2].startswith("step") or not match[1].isdigit() or not int(match[1]):
        raise BadInput(
            f"--memory-every {text!r}: give a number of steps, such as 1step or 10steps, so that "
            f"every rank captures the same ones"
        )
    return int(match[1])


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


def optimum(cost: float, between: float) -> float:
    """Seconds of training between two captures that lose least, where one costs `cost` seconds
    and the run fails every `between` seconds in the mean, at random.

    J. W. Young's √(2·cost·between) (CACM 17(9), 1974, pp. 530-531), with the terms that J. T. Daly
    added for a cost that is not small beside `between` (Future Generation Computer Systems 22(3),
    2006, pp. 303-312).
    """
    if between <= 0:
        return 0.0
    if cost >= 2 * between:
        return between
    share = math.sqrt(max(0.0, cost) / (2 * between))
    young = math.sqrt(2 * max(0.0, cost) * between)
    return young * (1 + share / 3 + share * share / 9) - max(0.0, cost)
