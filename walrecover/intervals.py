"""Sets of positions, compact: intervals, and intervals that repeat at a stride.

Owns the arithmetic, nothing of what a position means. A rank's share of a million global batches
is one `Stretch`; laying the shares of all ranks over each other costs as many operations as there
are stretches, not positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec


class Stretch(NamedTuple):
    """`times` intervals of `width` positions, the first at `start`, one every `stride`."""

    start: int
    width: int
    stride: int = 0
    times: int = 1

    @property
    def size(self) -> int:
        """How many positions."""
        return self.width * self.times

    @property
    def end(self) -> int:
        """Behind the last position."""
        return self.start + self.stride * (self.times - 1) + self.width

    def __str__(self) -> str:
        if self.times == 1:
            first, last = self.start, self.end - 1
            return str(first) if first == last else f"{first} to {last}"
        each = Stretch(self.start, self.width)
        return f"{each} and so on every {self.stride}, {self.times} times"


class Trail(msgspec.Struct, gc=False):
    """Collects intervals in the order in which they come, and keeps few stretches of them."""

    closed: list[Stretch] = []
    _start: int = 0
    _width: int = 0
    _stride: int = 0
    _count: int = 0

    def add(self, first: int, end: int) -> None:
        """The positions from `first` on, before `end`."""
        width = end - first
        count = self._count
        if count > 1:
            if width == self._width and first == self._start + self._stride * count:
                self._count = count + 1
                return
        elif count == 1:
            if first == self._start + self._width:
                self._width += width
                return
            if width == self._width and first > self._start + width:
                self._stride = first - self._start
                self._count = 2
                return
        if count:
            self.closed.append(Stretch(self._start, self._width, self._stride, count))
        self._start, self._width, self._stride, self._count = first, width, 0, 1 if width > 0 else 0

    def stretches(self) -> list[Stretch]:
        if not self._count:
            return list(self.closed)
        return [*self.closed, Stretch(self._start, self._width, self._stride, self._count)]


class Cell(NamedTuple):
    """Positions that are alike: in `counts[n]` stretches of the n-th layer each."""

    where: Stretch
    counts: tuple[int, ...]


class _Piece(NamedTuple):
    """In the blocks `k0` to `k1` - 1 of equal size: from `low` to `high` - 1 of each."""

    k0: int
    k1: int
    low: int
    high: int
    layer: int


def lay(layers: Sequence[Iterable[Stretch]]) -> list[Cell]:
    """Lay sets over each other. Every position that is in one of them is in exactly one cell.

    The cells are in order of their first position, and neighbours that are alike are one.
    """
    given = [list(layer) for layer in layers]
    block = _block(given)
    pieces = [
        piece
        for number, layer in enumerate(given)
        for stretch in layer
        for piece in _pieces(stretch, block, number)
    ]
    cells = _merged(_cells(pieces, block, len(given)))
    return sorted(cells, key=lambda cell: cell.where.start)


def _block(given: Sequence[Sequence[Stretch]]) -> int:
    """The stride that most intervals repeat at; 1 where none does."""
    strides: Counter[int] = Counter()
    for layer in given:
        for stretch in layer:
            if stretch.times > 1:
                strides[stretch.stride] += stretch.times
    return strides.most_common(1)[0][0] if strides else 1


def _pieces(stretch: Stretch, block: int, layer: int) -> Iterator[_Piece]:
    start, width, stride, times = stretch
    if times == 1 or stride == width:
        yield from _of_interval(start, start + width * times, block, layer)
    elif stride == block and width < block:
        k, low = divmod(start, block)
        high = low + width
        if high <= block:
            yield _Piece(k, k + times, low, high, layer)
        else:
            yield _Piece(k, k + times, low, block, layer)
            yield _Piece(k + 1, k + 1 + times, 0, high - block, layer)
    else:
        for n in range(times):
            yield from _of_interval(start + n * stride, start + n * stride + width, block, layer)


def _of_interval(first: int, end: int, block: int, layer: int) -> Iterator[_Piece]:
    if end <= first:
        return
    k0, low = divmod(first, block)
    k1, high = divmod(end, block)
    if k0 == k1:
        yield _Piece(k0, k0 + 1, low, high, layer)
        return
    if low:
        yield _Piece(k0, k0 + 1, low, block, layer)
        k0 += 1
    if k0 < k1:
        yield _Piece(k0, k1, 0, block, layer)
    if high:
        yield _Piece(k1, k1 + 1, 0, high, layer)


def _cells(pieces: Sequence[_Piece], block: int, layers: int) -> Iterator[Cell]:
    """Sweep over the blocks at which something begins or ends; between two, all are alike."""
    begins = sorted(pieces)
    ends = sorted({piece.k1 for piece in pieces} | {piece.k0 for piece in pieces})
    active: list[_Piece] = []
    next_begin = 0
    for k0, k1 in pairwise(ends):
        if active:
            active = [piece for piece in active if piece.k1 > k0]
        while next_begin < len(begins) and begins[next_begin].k0 == k0:
            active.append(begins[next_begin])
            next_begin += 1
        if active:
            yield from _within(active, k0, k1, block, layers)


def _within(active: Sequence[_Piece], k0: int, k1: int, block: int, layers: int) -> Iterator[Cell]:
    changes: dict[int, list[int]] = {}
    for piece in active:
        changes.setdefault(piece.low, [0] * layers)[piece.layer] += 1
        changes.setdefault(piece.high, [0] * layers)[piece.layer] -= 1
    counts = [0] * layers
    bounds = sorted(changes)
    alike: list[tuple[int, int, tuple[int, ...]]] = []
    for low, high in pairwise(bounds):
        counts = [a + b for a, b in zip(counts, changes[low], strict=True)]
        now = tuple(counts)
        if alike and alike[-1][1] == low and alike[-1][2] == now:
            alike[-1] = (alike[-1][0], high, now)
        elif any(now):
            alike.append((low, high, now))
    for low, high, now in alike:
        if high - low == block:
            yield Cell(Stretch(k0 * block, block * (k1 - k0)), now)
        elif k1 - k0 == 1:
            yield Cell(Stretch(k0 * block + low, high - low), now)
        else:
            yield Cell(Stretch(k0 * block + low, high - low, block, k1 - k0), now)


def _merged(cells: Iterable[Cell]) -> list[Cell]:
    found: list[Cell] = []
    for cell in cells:
        if found:
            before = found[-1]
            touches = before.where.times == cell.where.times == 1
            if touches and before.where.end == cell.where.start and before.counts == cell.counts:
                joined = Stretch(before.where.start, before.where.width + cell.where.width)
                found[-1] = Cell(joined, cell.counts)
                continue
        found.append(cell)
    return found
