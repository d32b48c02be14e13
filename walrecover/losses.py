"""When the losses of a history went bad: a rule over numbers, nothing else.

A step is bad

- where a scalar whose name is `loss` or ends in `loss` is not finite; or
- where `loss` leaves its course: it is the first of `PATIENCE` steps in a row whose losses all lie
  above the median of the `WINDOW` steps before it by more than `FACTOR` times their usual distance
  from it (the median distance, at least `FLOOR` of the median). With fewer than `ENOUGH` steps
  before it nothing is a spike. One wild batch is none: it is over with the next step.

Owns the rule; what follows from it is `policy`'s and `recovery`'s.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

WINDOW = 64
ENOUGH = 32
PATIENCE = 3
FACTOR = 10.0
FLOOR = 0.1


class Finding(NamedTuple):
    """The first bad step, and why it is."""

    step: int
    reason: str


class Watch:
    """The rule over the losses of one rank, step by step."""

    def __init__(self) -> None:
        self.found: Finding | None = None
        self._course: deque[float] = deque(maxlen=WINDOW)
        self._above: list[tuple[int, float]] = []

    def take(self, step: int, scalars: Mapping[str, float]) -> Finding | None:
        """The scalars of one more step; what is wrong so far. A step may come in parts."""
        if self.found is None:
            for name, value in scalars.items():
                if not is_loss(name):
                    continue
                if not math.isfinite(value):
                    said = name if name.isidentifier() else repr(name)  # people will read it
                    self.found = Finding(step, f"{said} is {value} at step {step}")
                    break
                if name == "loss":
                    self._follow(step, value)
        return self.found

    def _follow(self, step: int, value: float) -> None:
        if len(self._course) < ENOUGH:
            self._course.append(value)
            return
        ordered = sorted(self._course)
        median = ordered[len(ordered) // 2]
        apart = sorted(abs(one - median) for one in ordered)[len(ordered) // 2]
        limit = median + FACTOR * max(apart, FLOOR * abs(median))
        if value <= limit or not limit > median:  # a course of nothing but zeros has no measure
            self._course += [one for _, one in self._above]
            self._above.clear()
            self._course.append(value)
            return
        self._above.append((step, value))
        if len(self._above) >= PATIENCE:
            first, worst = self._above[0][0], max(one for _, one in self._above)
            self.found = Finding(
                first,
                f"the loss rose to {worst:.4g} from step {first} on, where its median was "
                f"{median:.4g}",
            )


def is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("loss")


def judge(steps: Iterable[tuple[int, int, Mapping[str, float]]]) -> Finding | None:
    """The first bad step over all ranks; `steps`: rank, step, scalars, each rank in its order."""
    watches: dict[int, Watch] = {}
    for rank, step, scalars in steps:
        watches.setdefault(rank, Watch()).take(step, scalars)
    found = [watch.found for watch in watches.values() if watch.found is not None]
    return min(found, default=None)
