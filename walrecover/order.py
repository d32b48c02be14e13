"""The order of an epoch, and who takes which part of it: functions of numbers alone.

Owns the keyed bijection from positions to samples and the arithmetic of global batches. A position
is a place in the order of one epoch, 0 to length - 1. Which sample stands there depends on (seed,
epoch, length) and on nothing else: not on the number of ranks or workers, not on what was read
before. The arithmetic works on numbers and on arrays of int64 alike, and stays below 2**63.
"""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from walrecover.errors import BadInput

LONGEST = 1 << 62  # an epoch's samples
TAILS = ("keep", "drop", "pad")
ROUNDS = 8
_WORD = 0xFFFFFFFF
_KEYS = struct.Struct(f"<{ROUNDS}I")

Range = tuple[int, int]  # half-open


class Order:
    """The order of one epoch: `order(position)` is the number of the sample that stands there.

    A Feistel network over a rectangle of about `length` places; a value outside of the epoch is
    sent through it again, which is rarely needed. Nothing is kept but a few keys.
    """

    def __init__(self, seed: int, epoch: int, length: int) -> None:
        """Raises BadInput for a length that cannot be ordered."""
        if not 0 < length <= LONGEST:
            raise BadInput(f"an epoch has from 1 to 2**62 samples, and this one has {length}")
        self.length = length
        self._wide = math.isqrt(length - 1) + 1
        self._high = -(-length // self._wide)
        self._keys = _keys("order", seed, epoch, length)

    def __call__(self, position: int) -> int:
        """Raises IndexError for a position outside of the epoch."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of an epoch of {self.length} samples")
        found: int = self.once(position)
        while found >= self.length:
            found = self.once(found)
        return found

    def once(self, value: Any) -> Any:
        """The network, applied once: of a number or an array of int64. A bijection of the
        rectangle's places; those from `length` on are to be sent through it again."""
        wide, high = self._wide, self._high
        x, y = value % wide, value // wide
        for n in range(0, ROUNDS, 2):
            x = x + ((_mixed(y, self._keys[n]) * wide) >> 32)
            x = x - wide * (x >= wide)
            y = y + ((_mixed(x, self._keys[n + 1]) * high) >> 32)
            y = y - high * (y >= high)
        return y * wide + x


class Draws:
    """Weighted draws with replacement: `draws(position)` is the sample drawn there.

    Independent draws, each a function of (seed, epoch, position) and the weights, which are given
    as their running sums, `cumulative(weights)`.
    """

    def __init__(self, seed: int, epoch: int, sums: Sequence[float]) -> None:
        self.sums = sums
        self._keys = _keys("draws", seed, epoch, len(sums))

    def __call__(self, position: int) -> int:
        return min(bisect_right(self.sums, self.point(self.bits(position))), len(self.sums) - 1)

    def point(self, bits: Any) -> Any:
        """Where a draw falls, from 0 to the sum of the weights. `bits` of an array: as float64."""
        return bits * 2.0**-53 * float(self.sums[-1])

    def bits(self, position: Any) -> Any:
        """53 random bits, of a number or an array of int64."""
        low, high = position & _WORD, position >> 32
        for n in range(0, ROUNDS, 2):
            low = low ^ _mixed(high, self._keys[n])
            high = high ^ _mixed(low, self._keys[n + 1])
        return (high >> 6) * (1 << 27) + (low >> 5)


def cumulative(weights: Sequence[float]) -> list[float]:
    """The running sums of weights. Raises BadInput where they are not weights."""
    for n, weight in enumerate(weights):
        if not 0 <= weight < math.inf:
            raise BadInput(f"weight {n} is {weight}: weights are finite numbers from 0 on")
    sums = [float(value) for value in accumulate(weights)]
    if not sums or not 0 < sums[-1] < math.inf:
        raise BadInput("the weights must have a finite sum above 0")
    return sums


class Layout(NamedTuple):
    """How an epoch is cut into global batches.

    `tail`: what happens to the last batch where it is not full. "keep": it is shorter. "drop": it
    is left out. "pad": it is filled with the samples from the epoch's beginning, at positions from
    `length` on.
    """

    length: int
    batch: int
    tail: str = "keep"

    @property
    def batches(self) -> int:
        """How many global batches an epoch has."""
        whole, rest = divmod(self.length, self.batch)
        return whole + (rest > 0 and self.tail != "drop")

    @property
    def consumed(self) -> int:
        """How many of the epoch's positions belong to a batch."""
        return min(self.length, self.batches * self.batch)

    def part(self, number: int, rank: int = 0, world: int = 1) -> Range:
        """The positions of a rank in a global batch. From `length` on they are padding."""
        start = number * self.batch
        stop = start + self.batch
        if self.tail == "keep":
            stop = min(stop, self.length)
        size = stop - start
        return start + rank * size // world, start + (rank + 1) * size // world

    def check(self, world: int) -> None:
        """Raises BadInput where the batches cannot be cut so, or so many ranks cannot share them,
        and says how many can."""
        if self.tail not in TAILS:
            raise BadInput(f"tail is {self.tail!r}: it is one of {', '.join(TAILS)}")
        if self.length < 1 or self.batch < 1:
            raise BadInput(
                f"a global batch of {self.batch} of {self.length} samples: both are at least 1"
            )
        if not self.batches:
            raise BadInput(
                f"a global batch of {self.batch} has more samples than the epoch's {self.length}, "
                f"and tail='drop' leaves it out: nothing remains"
            )
        if self.batch % world:
            below = self.batch // world * world
            sizes = [str(size) for size in (below, below + world) if size]
            raise BadInput(
                f"{world} ranks cannot share a global batch of {self.batch} equally: "
                f"{_listed(divisors(self.batch))} can; {world} ranks could share one of "
                f"{' or '.join(sizes)}"
            )
        rest = self.length % self.batch
        if self.tail == "keep" and 0 < rest < world:
            raise BadInput(
                f"the last global batch has {_counted(rest, 'sample')} for {world} ranks, so that "
                f"some had none: take tail='pad' or tail='drop', or {rest} of them at most"
            )

    def left_out(self, skips: Iterable[Range]) -> tuple[Range, ...]:
        """The global batches that positions of `skips` touch, as ranges in order. A batch is left
        out as a whole. Raises BadInput for a range outside of the epoch."""
        touched = []
        for start, stop in skips:
            if not 0 <= start < stop <= self.consumed:
                raise BadInput(
                    f"positions {start}:{stop} cannot be skipped: the epoch consumes 0 to "
                    f"{self.consumed - 1}"
                )
            touched.append((start // self.batch, (stop - 1) // self.batch + 1))
        joined: list[Range] = []
        for start, stop in sorted(touched):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        return tuple(joined)

    def positions(self, batches: Range) -> Range:
        """The epoch's positions in a range of global batches, padding not included."""
        return batches[0] * self.batch, min(batches[1] * self.batch, self.consumed)


def check_shares(count: int, world: int, what: str) -> None:
    """Raises BadInput where so many ranks cannot have as many of these each."""
    if count % world:
        raise BadInput(
            f"{world} ranks cannot share {count} {what} equally: {_listed(divisors(count))} can"
        )


def kept(left_out: Sequence[Range], count: int) -> int:
    """The number of the batch behind the first `count` that are not left out."""
    number = count
    for start, stop in left_out:
        if number < start:
            break
        number += stop - start
    return number


def divisors(number: int) -> list[int]:
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return low + [number // n for n in reversed(low) if n * n != number]


def _keys(what: str, *key: int) -> tuple[int, ...]:
    text = "/".join([f"walrecover {what} 1", *map(str, key)])
    return _KEYS.unpack(hashlib.blake2b(text.encode(), digest_size=_KEYS.size).digest())


def _mixed(value: Any, key: int) -> Any:
    """A hash of 32 bits, of a number or an array. Its factors are below 2**31, so that no product
    leaves the range of an int64."""
    value = (value + key) & _WORD
    value = value ^ (value >> 16)
    value = (value * 0x21F0AAAD) & _WORD
    value = value ^ (value >> 15)
    value = (value * 0x735A2D97) & _WORD
    return value ^ (value >> 15)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(numbers: Sequence[int]) -> str:
    shown = [str(n) for n in (numbers if len(numbers) <= 12 else [*numbers[:11], numbers[-1]])]
    if len(numbers) > 12:
        shown[-1] = f"… {shown[-1]}"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
