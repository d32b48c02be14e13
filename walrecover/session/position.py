"""Where training stands in its data, as a snapshot keeps it.

Owns the form of a position, nothing else: `loops` makes it and gets back to it, `restoring` reads
and writes it. It is a list of `Place`s, outermost first: how many items each loop had handed out,
and the random state with which it began and fetched its current item, so that on resume every
prologue repeats as it was (DESIGN: restore order).
"""

from __future__ import annotations

from typing import Any

import msgspec


class Place(msgspec.Struct):
    """One loop of a position.

    `begin`, `before`: the random state as the loop began, and before its current item was fetched.
    `done`: for each finished loop inside its current item None, or, where steps were made in it,
    the random state as it ended. `direct`: how many steps were made in its current item, outside
    of those. `trains`: steps are made in it, not only in loops inside it. `broken`: left by break,
    then finished at that length.
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


class Position(msgspec.Struct):
    """Where training stands.

    `places` outermost first, the last one being the loop whose next item was asked for. `begun`:
    the random state at `attach`. `done` and `direct`: as in Place, at the top level. `behind`: how
    many steps were made since the only place, a loop that has ended. `generators`: loaders' own,
    those that no place reads included.
    """

    places: list[Place] = []
    begun: dict[str, Any] = {}
    done: list[Any] = []
    direct: int = 0
    behind: int = 0
    generators: list[Any] = []
