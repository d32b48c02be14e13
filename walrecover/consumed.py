"""What one step consumed of one reader of data, as the journal keeps it.

Owns the form. Who collects it is the session's `consuming`, what it proves is `ledger`'s.

A *reader* is one iterable of one `run.loop`, known in every attempt and on every rank by the same
number; `DataOpened` says what it reads. A *pass* is one iteration over it, counted from 0 and from
the run's beginning. Positions are places in the order of one pass: 0 to its length - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

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
