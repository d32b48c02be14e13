"""Draws crash states: which of the things that a crash may take away it took.

Owns: the order of drawing at one operation, from the telling cases (nothing, everything, names
without data, all but one, only one) over every combination of a few to seeded random ones.
What is legal comes from `model`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from . import ops
from .model import PAGE, SECTOR, Dirty, History

OLD, NEW = 0, -1
_FEW = 6


@dataclass(frozen=True, slots=True)
class FileState:
    """What the disk holds of a file that was not durable.

    A page holds its version `version`, if `pages` does not list it as (page, version, cut,
    other): its sectors before the cut are then of the one version, the rest of the other.
    """

    size: int
    version: int
    pages: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One crash state, to be rebuilt from its history.

    A process kill has `upto`: the last operation that took effect, and `pages`, how much of the
    next, a write, did as well. A power cut has the pending names that were kept, and the state
    of each file that was not durable.
    """

    at: int
    kill: bool = False
    upto: int = -1
    pages: int = 0
    names: frozenset[int] = frozenset()
    files: Mapping[int, FileState] = field(default_factory=dict)


class Point:
    """A crash at one operation: what is uncertain there."""

    def __init__(self, history: History, at: int) -> None:
        self.history, self.at = history, at
        self.names, self.dirty = history.uncertain(at)
        self.drawing = False

    def choices(self, rng: random.Random) -> Iterator[Choice | None]:
        """The telling ones, then, once `drawing`, random ones without end; None if drawn before.

        Different choices may well make the same tree.
        """
        yield from self._kills()
        yield from self._telling()
        if len(self.names) + len(self.dirty) <= _FEW:
            yield from self._combinations()
        self.drawing = True
        drawn = set[int]()
        while self.names or self.dirty:
            choice = self._random(rng)
            key = hash((choice.names, tuple(choice.files.items())))
            yield None if key in drawn else choice
            drawn.add(key)

    # --- process kill

    def _kills(self) -> Iterator[Choice]:
        yield Choice(self.at, kill=True, upto=self.at)
        yield Choice(self.at, kill=True, upto=self.at - 1)
        op = self.history.ops[self.at]
        if isinstance(op, ops.Write):
            pages = (op.offset + len(op.data) - 1) // PAGE - op.offset // PAGE
            for count in sorted({1, pages // 2, pages} - {0} if pages else ()):
                yield Choice(self.at, kill=True, upto=self.at - 1, pages=count)

    # --- power cut

    def _cut(self, names: Iterable[int], files: Mapping[int, FileState]) -> Choice:
        return Choice(self.at, names=frozenset(names), files=files)

    def _files(self, versions: Mapping[int, int], default: int) -> dict[int, FileState]:
        return {
            ino: _uniform(dirty, versions.get(ino, default)) for ino, dirty in self.dirty.items()
        }

    def _names_but(self, left_out: int) -> list[int]:
        if self.history.order == "ordered":
            return [at for at in self.names if at < left_out]
        return [at for at in self.names if at != left_out]

    def _names_only(self, kept: int) -> list[int]:
        if self.history.order == "ordered":
            return [at for at in self.names if at <= kept]
        return [kept]

    def _telling(self) -> Iterator[Choice]:
        for names in ((), self.names):
            for version in (OLD, NEW):
                yield self._cut(names, self._files({}, version))
        yield self._cut(self.names, {ino: _hollow(dirty) for ino, dirty in self.dirty.items()})
        for ino, dirty in self.dirty.items():
            yield self._cut(self.names, self._files({ino: OLD}, NEW))
            yield self._cut(self.names, self._files({}, NEW) | {ino: _hollow(dirty)})
            yield self._cut(self.names, self._files({ino: NEW}, OLD))
        for at in self.names:
            for version in (NEW, OLD):
                yield self._cut(self._names_but(at), self._files({}, version))
                yield self._cut(self._names_only(at), self._files({}, version))

    def _combinations(self) -> Iterator[Choice]:
        files = [[(ino, OLD), (ino, NEW)] for ino in self.dirty]
        for names in self._all_names():
            for versions in product(*files):
                yield self._cut(names, self._files(dict(versions), NEW))

    def _all_names(self) -> list[list[int]]:
        if self.history.order == "ordered":
            return [self.names[:count] for count in range(len(self.names) + 1)]
        kept = product((False, True), repeat=len(self.names))
        return [[at for at, keep in zip(self.names, row, strict=True) if keep] for row in kept]

    def _random(self, rng: random.Random) -> Choice:
        """Half of the time with all names: what has no name hides whatever is in it."""
        if rng.random() < 0.5:
            names = self.names
        elif self.history.order == "ordered":
            names = self.names[: rng.randint(0, len(self.names))]
        else:
            chance = rng.choice((0.1, 0.5, 0.9))
            names = [at for at in self.names if rng.random() < chance]
        return self._cut(names, {ino: _drawn(dirty, rng) for ino, dirty in self.dirty.items()})


def _uniform(dirty: Dirty, version: int) -> FileState:
    return FileState(dirty.sizes[version], version)


def _hollow(dirty: Dirty) -> FileState:
    """The size arrived and the data did not."""
    return FileState(dirty.sizes[NEW], OLD)


def _drawn(dirty: Dirty, rng: random.Random) -> FileState:
    if rng.random() < 0.3:
        version = rng.choice((OLD, NEW))
        return FileState(rng.choice((dirty.sizes[version], rng.choice(dirty.sizes))), version)
    size = dirty.sizes[NEW] if rng.random() < 0.7 else rng.choice(dirty.sizes)
    torn, newest = rng.choice((0.0, 0.2, 0.7)), rng.choice((0.1, 0.5, 0.9))
    pages = [
        (page, *_page(len(versions), newest, torn, rng)) for page, versions in dirty.pages.items()
    ]
    return FileState(size, OLD, tuple(pages))


def _page(count: int, newest: float, torn: float, rng: random.Random) -> tuple[int, int, int]:
    version = count - 1 if rng.random() < newest else rng.randrange(count)
    if rng.random() >= torn:
        return version, PAGE // SECTOR, version
    other = (version + rng.randrange(1, count)) % count
    return version, rng.randrange(1, PAGE // SECTOR), other
