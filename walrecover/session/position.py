"""Where training stands in its data, as a snapshot keeps it.

Owns the form of a position, nothing else: `loops` makes it and gets back to it, `restoring` reads
and writes it. It is a list of `Place`s, outermost first: how many items each loop had handed out,
and the random state with which it began and fetched its current item, so that on resume every
prologue repeats as it was (DESIGN: restore order).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from walrecover.consumed import Facts, chain


class Count(NamedTuple):
    """How many passes over a loader have begun. `look`: what loaders are told apart by. `place`:
    the loop in which it was last read, and which of the loop's iterables it is; `home`: the first
    such place."""

    look: str
    place: tuple[int, ...]
    passes: int
    home: tuple[int, ...]


Counts = tuple[Count, ...]
"""Of all loaders, by their number."""


def counts_tree(counts: Counts) -> list[Any]:
    """The wire form."""
    return [[c.look, list(c.place), c.passes, list(c.home)] for c in counts]


def counts_from(tree: Sequence[Any]) -> Counts:
    return tuple(
        Count(look, tuple(place), passes, tuple(home)) for look, place, passes, home in tree
    )


class Place(msgspec.Struct):
    """One loop of a position.

    `begin`, `before`: the random state as the loop began, and before its current item was fetched.
    `done`: for each finished loop inside its current item None, or, where steps were made in it,
    the random state as it ended. `direct`: how many steps were made in its current item, outside
    of those. `trains`: steps are made in it, not only in loops inside it. `broken`: left by break,
    then finished at that length. `passes`: over loaders, as its current item was fetched.
    """

    ordinal: int
    consumed: int
    begin: dict[str, Any]
    before: dict[str, Any]
    done: list[Any]
    direct: int = 0
    trains: bool = False
    length: int | None = None
    broken: bool = False
    sources: list[Any] = []
    passes: Counts = ()


Where = tuple[tuple[int, ...], int]
"""A reader of data: the place of its loop, and which of the loop's iterables it is."""


class Known(msgspec.Struct, frozen=True):
    """What is kept of a reader (specs/13-ledger.md).

    `number`: of the reader. `passes`: how many had steps; `varied`: their facts differed. `at`:
    positions that the last of them handed out; `chain`: the digest of their sample ids, those of
    `ids` still to be taken into it.
    """

    number: int
    facts: Facts
    passes: int
    varied: bool
    at: int
    chain: bytes
    ids: tuple[Sequence[Any], ...] = ()


class Ledger(msgspec.Struct, frozen=True):
    """The readers of a run. `step`: the last one that was made."""

    step: int = 0
    readers: tuple[tuple[Where, Known], ...] = ()


def ledger_tree(ledger: Ledger) -> list[Any]:
    """The wire form."""
    found = []
    for (path, which), known in ledger.readers:
        digest = known.chain
        for ids in known.ids:
            digest = chain(digest, ids)
        counted = known.number, known.passes, known.varied, known.at
        found.append([list(path), which, list(known.facts), *counted, digest])
    return [ledger.step, found]


def ledger_from(tree: Sequence[Any]) -> Ledger:
    """The ledger of a wire form: of [] that of a release without one."""
    if not tree:
        return Ledger()
    step, found = tree
    return Ledger(
        step,
        tuple(
            ((tuple(path), which), Known(number, Facts(*facts), *rest))
            for path, which, facts, number, *rest in found
        ),
    )


class Position(msgspec.Struct):
    """Where training stands.

    `places` outermost first, the last one being the loop whose next item was asked for. `begun`:
    the random state at `attach`. `done` and `direct`: as in Place, at the top level. `behind`: how
    many steps were made since the only place, a loop that has ended. `generators`: loaders' own,
    those that no place reads included. `ledger`: what was consumed of which data. `passes`: over
    loaders. `seed`: of the run.
    """

    places: list[Place] = []
    begun: dict[str, Any] = {}
    done: list[Any] = []
    direct: int = 0
    behind: int = 0
    generators: list[Any] = []
    ledger: Ledger = Ledger()
    passes: Counts = ()
    seed: int | None = None
