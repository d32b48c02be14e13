"""How often to capture, measured by rank 0, and what captures took from the loop.

Owns the measurements and the choice; when a choice is announced is `agreeing`'s, the formula
`pace`'s. Every rank journals for how long its loop stood still.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from walrecover.commits import Key
from walrecover.events import LoopStalled
from walrecover.journal import Journal
from walrecover.pace import Every, Known, choose, optimum

COSTS = 8
"""Captures of which the cost is the median: the first one may be slow."""


class Choice(NamedTuple):
    """Multiples of `steps`, about one in `seconds`. `cost` and `between` where it follows from
    these (see `events.PaceSet`), else 0."""

    steps: int
    seconds: float
    cost: float = 0.0
    between: float = 0.0


class Pacer:
    """One rank's. `known`: what the attempts before this one teach. Their captures' cost counts
    until there are some of this one: where it fails quickly, there may never be."""

    def __init__(self, every: Every, known: Known, journal: Journal) -> None:
        self.every, self._rate, self._journal = every, known.rate, journal
        self._costs: deque[float] = deque(maxlen=COSTS)
        self._before = known.cost
        self._began = time.monotonic()

    def stood_still(
        self, key: Key, seconds: float, *, commit: bool = False, held: bool = False
    ) -> None:
        """The loop stood still for so long until now, for this capture or for its commit. `held`:
        it was only kept in memory, at a pace of its own."""
        if not commit and not held:
            self._costs.append(seconds)
        self._journal.append(
            LoopStalled(at=time.time(), step=key.step, seconds=seconds, end=key.end, commit=commit)
        )

    def choose(self, times: Sequence[float]) -> Choice:
        """For steps that took so long. By cost and rate where both are known and it is left to
        walrecover; else as was asked for."""
        step = sorted(times)[(len(times) - 1) // 2]
        between = self._rate.between(time.monotonic() - self._began)
        cost = median(self._costs) if self._costs else self._before
        if not self.every.auto or between is None or cost is None:
            return Choice(choose(step, self.every), self.every.seconds or 0.0)
        wanted = optimum(cost, between)
        return Choice(choose(step, Every(None, wanted)), wanted, cost, between)
