"""Which snapshot a scrubber reads next, and when: the pure part.

Owns the order of a cycle. Reads nothing; the time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from walrecover.entries import SnapshotRef

CYCLE_SECONDS = 86400.0
LOOK_SECONDS = 60.0
"""How long it waits at most before it looks for new snapshots."""

_LEAST_SECONDS = 0.01  # less than a clock can tell would be no wait at all


class Item(NamedTuple):
    """A committed snapshot of a run. `committed`: Unix time. `newest`: the first that recovery
    would try."""

    run: str
    ref: SnapshotRef
    committed: float
    newest: bool

    @property
    def key(self) -> str:
        return f"{self.run}/{self.ref.manifest}"


class Reading(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a snapshot was last read (Unix time), and what was wrong with it. `damaged`: not only
    that it could not be read."""

    at: float
    problem: str = ""
    damaged: bool = False


class Turn(NamedTuple):
    """What to read now; None: nothing for so many seconds."""

    item: Item | None
    wait: float = 0.0


def next_turn(
    items: Sequence[Item], readings: Mapping[str, Reading], now: float, cycle: float
) -> Turn:
    """What was never read, the newest first; else what was read longest ago, once it is due."""
    fresh = [item for item in items if item.key not in readings]
    if fresh:
        return Turn(max(fresh, key=lambda item: (item.newest, item.committed)))
    if not items:
        return Turn(None, LOOK_SECONDS)
    item = max(items, key=lambda one: _age(readings[one.key], now))
    left = cycle - _age(readings[item.key], now)
    return Turn(item) if left <= 0 else Turn(None, min(max(left, _LEAST_SECONDS), LOOK_SECONDS))


def _age(reading: Reading, now: float) -> float:
    """Seconds since then. What lies ahead was written by a wrong clock, and proves nothing."""
    return now - reading.at if reading.at <= now else float("inf")
