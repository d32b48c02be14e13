"""The loss curve of a run as it is drawn: few points, where it crashed, what does not count.

Pure. Owns the thinning: of many points, each that is kept stands for its neighbours with their
lowest, highest and mean loss, so that no spike is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

MOST_POINTS = 1500
_COLUMNS = ("mean", "low", "high", "gone")


class Point(NamedTuple):
    """Steps in a row, the last of them `step`. None where no loss was finite."""

    step: int
    low: float | None
    high: float | None
    mean: float | None
    weight: int = 1


class Part(NamedTuple):
    """What one attempt made. Steps from `gone_from` on do not count; `crashed` is why it ended, ""
    where it did not fail."""

    attempt: int
    points: Sequence[Point]
    gone_from: int | None = None
    crashed: str = ""
    last: int | None = None


def curve(parts: Sequence[Part], most: int = MOST_POINTS) -> dict[str, Any]:
    """Plain values: `step`, and beside it `mean`, `low`, `high` of what counts and `gone` of what
    does not; `shaded`: steps that were made again; `crashes`."""
    counted: dict[int, Point] = {}
    gone: dict[int, Point] = {}
    for part in parts:
        cut = part.gone_from
        for point in part.points:
            if cut is not None and point.step >= cut:
                gone[point.step] = point
            else:
                counted[point.step] = point
    rows = list(_rows(counted, gone, most))
    return {
        "step": [row[0] for row in rows],
        **{name: [row[n] for row in rows] for n, name in enumerate(_COLUMNS, start=1)},
        "shaded": [
            {"from": part.gone_from, "to": part.last, "attempt": part.attempt}
            for part in parts
            if part.gone_from is not None and part.last is not None
        ],
        "crashes": [
            {"step": part.last, "cause": part.crashed, "attempt": part.attempt}
            for part in parts
            if part.crashed and part.last is not None
        ],
    }


def _rows(
    counted: dict[int, Point], gone: dict[int, Point], most: int
) -> Iterator[tuple[float | None, ...]]:
    """At most so many rows, each for as many steps in a row."""
    steps = sorted(counted.keys() | gone.keys())
    size = max(1, -(-len(steps) // most))
    for place in range(0, len(steps), size):
        some = steps[place : place + size]
        kept = _together([counted[step] for step in some if step in counted])
        lost = _together([gone[step] for step in some if step in gone])
        yield some[-1], kept.mean, kept.low, kept.high, lost.mean


def _together(points: Sequence[Point]) -> Point:
    known = [p for p in points if p.mean is not None]
    count = sum(p.weight for p in known)
    total = sum(p.mean * p.weight for p in known if p.mean is not None)
    return Point(
        points[-1].step if points else 0,
        _least(p.low for p in known),
        _most(p.high for p in known),
        total / count if count else None,
        count,
    )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
