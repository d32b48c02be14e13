"""Which tensors of a vote need not be written: a committed shard holds their bytes already.

Owns the choice, from digests alone (specs/04-snapshots.md, "What did not change"). Two lines of
shards take turns, so that a snapshot shares no file with the one before it: damage of one file
leaves the other line (rule 10).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from walrecover.entries import snapshot_name
from walrecover.manifest import FileAt, Part, TensorAt

MOST_FILES = 8
"""Older shards that one rank's vote may list."""


class Offer(NamedTuple):
    """A tensor of a committed shard, and that shard."""

    at: TensorAt
    file: FileAt


class Past:
    """What a rank remembers of its own votes. `base`: its part of the plan's base."""

    def __init__(self, base: Part | None = None) -> None:
        self._last: Part | None = base
        self._before: Part | None = None
        self._committed: tuple[Part, ...] = (base,) if base else ()
        self._pending: tuple[Part, ...] = ()
        self._distrusted: frozenset[str] = frozenset()

    def cast(self, part: Part) -> None:
        """A vote was cast."""
        self._before, self._last = self._last, part
        self._pending = (*self._pending, part)

    def committed(self, captures: Collection[tuple[int, bool]]) -> None:
        """These captures, (step, end), of this attempt are committed; what lies below the newest
        of them and is not among them never will be."""
        newest = max(captures)
        met = tuple(part for part in self._pending if (part.step, part.end) in captures)
        self._committed = (*self._committed, *met)[-2:]
        self._pending = tuple(part for part in self._pending if (part.step, part.end) > newest)

    def names(self) -> set[str]:
        """The captures that are remembered."""
        return {_name(part) for part in self._parts()}

    def distrust(self, name: str) -> None:
        """A capture did not read back, or was refused: no file that it lists is referenced again,
        so that the next vote writes what lies there."""
        self._distrusted |= {
            path for part in self._parts() if _name(part) == name for path in part.files
        }

    def offers(self) -> dict[str, Offer]:
        """Tensors that will hardly have changed, by name, where a committed shard holds them.

        Only what the last two votes found equal is offered: it must be hashed before anything is
        written, which the rest need not be. Files of the vote before are left to the other line.
        """
        if self._last is None or self._before is None:
            return {}
        spoken_for = self._last.files.keys() | self._distrusted
        held = {
            at.digest: Offer(at, part.files[at.file])
            for part in self._committed
            for at in part.tensors.values()
            if at.file in part.files and at.file not in spoken_for
        }
        if not held:
            return {}
        before = self._before.tensors
        return {
            name: held[at.digest]
            for name, at in self._last.tensors.items()
            if at.digest in held and name in before and before[name].digest == at.digest
        }

    def _parts(self) -> list[Part]:
        some = (self._last, self._before, *self._committed, *self._pending)
        return [part for part in some if part is not None]


def worthwhile(offers: Mapping[str, Offer], nbytes: Mapping[str, int]) -> dict[str, Offer]:
    """The offers to take: none of a shard of which less than half would be alive, and those of
    at most `MOST_FILES` shards. `nbytes`: each tensor's size.

    So the shards that a vote lists hold at most twice its tensors' bytes.
    """
    alive: dict[str, int] = {}
    sizes: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for name, offer in offers.items():
        place = (offer.at.file, offer.at.key)
        sizes[offer.at.file] = offer.file.bytes
        if place not in seen:
            seen.add(place)
            alive[offer.at.file] = alive.get(offer.at.file, 0) + nbytes[name]
    fit = [path for path in alive if 2 * alive[path] >= sizes[path]]
    taken = set(sorted(fit, key=lambda path: (-alive[path], path))[:MOST_FILES])
    return {name: offer for name, offer in offers.items() if offer.at.file in taken}


def _name(part: Part) -> str:
    return snapshot_name(part.step, part.attempt, part.nonce, part.end)
