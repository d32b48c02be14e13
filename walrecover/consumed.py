"""What one step consumed of one reader of data, as the journal keeps it.

Owns the form. Who collects it is the session's `consuming`, what it proves is `ledger`'s.

A *reader* is one iterable of one `run.loop`, known in every attempt and on every rank by the same
number; `DataOpened` says what it reads. A *pass* is one iteration over it, counted from 0 and from
the run's beginning. Positions are places in the order of one pass: 0 to its length - 1.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_128_digest

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of positions, ascending and disjoint."""


class Consumed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One step's share of one pass over one reader.

    `source`: the reader's number. `epoch`: the pass. `ranges`: the positions that were handed out.
    `samples`: xxh3-128 of their sample ids in order (`ids_digest`), where the ids are known.
    `padded`: positions behind the end, where a last batch was filled up with samples that the pass
    already had. `skipped`: positions passed over by order of a person or of the policy.
    """

    source: int
    epoch: int = 0
    ranges: Ranges = ()
    samples: bytes | None = None
    padded: Ranges = ()
    skipped: Ranges = ()


class Handed(NamedTuple):
    """What an iterator over a map-style loader tells of the batch it has just given (its attribute
    `handed`): the sample ids, in order, and, where its order is global, the positions.

    `ranges` None: the positions are those that follow the ones before, as many as there are ids.
    """

    ids: Sequence[Any]
    ranges: Ranges | None = None
    padded: Ranges = ()
    skipped: Ranges = ()


class Facts(NamedTuple):
    """What fixes the order of a pass, as `DataOpened` has it. A sampler of a global order gives its
    own by `describe()`."""

    kind: str
    length: int | None = None
    batch: int = 0
    seed: int | None = None
    digest: bytes | None = None
    dropped: int = 0
    keyed: bool = False
    world: int = 1


def packed(ids: Sequence[Any]) -> bytes:
    """Sample ids as bytes: whole numbers of 64 bits, little-endian; anything else as it shows
    itself, a line each."""
    try:
        numbers = array("q", ids)
    except (TypeError, OverflowError, ValueError):
        return "".join(f"{one!r}\n" for one in ids).encode(errors="surrogatepass")
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def ids_digest(ids: Sequence[Any]) -> bytes:
    """`Consumed.samples` of a step that consumed these."""
    return xxh3_128_digest(packed(ids))


def chain(before: bytes, ids: Sequence[Any]) -> bytes:
    """The digest of a pass's ids, one batch further. b"" before the first."""
    return xxh3_128_digest(before + packed(ids))
