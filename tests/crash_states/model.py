"""Which states of the tree are legal after a crash.

Owns: the fault model, below. It must not know how states are drawn, written or checked.

A crash at operation k: all before k have returned; k itself, and what overlapped it in other
threads and processes, may have taken effect, in part or not at all.

Process kill: the page cache lives on, so all that returned is there, in order; a write that was
under way may stop at a page boundary.

Power cut, in the weakest reading of POSIX that journaling file systems and disks honour:

- A sync that returned made durable what had returned before it began: of a file its data and
  size, *not* the name it has; of a directory the names in it, *not* the directory's own name
  nor the contents of its files; of an O_DSYNC write the pages of that write and the size.
- Every 512-byte sector of a file that is not durable holds any version since the durable one:
  a page reaches the disk with all that was written to it by then, pages in any order, sectors
  of one page apart. A file's size is independent of its data and holds any value since the
  durable one; bytes that the size covers and no write reached are zeros, never another file's.
- A change of names (create, mkdir, link, rename, unlink) is atomic and names an inode, which
  exists whatever happened to its other names. A rename or link is made durable by a sync of the
  directory it leads to, an unlink by that of the directory it was in.
- Changes of names that are not durable are there or not, in any combination (order "any"), or
  as a prefix of their order in time, across directories as one journal would keep them (order
  "ordered", as ext4 and XFS do). Data and names are never ordered among each other.
- What is not below the root is not looked at; the root itself is durable. Modes, times and
  owners are not modelled, nor is a sync that fails: it promises nothing and changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

from . import ops
from .names import Names

PAGE, SECTOR = 4096, 512
Order = Literal["any", "ordered"]
_ZERO_PAGE = bytes(PAGE)


class Version(NamedTuple):
    """A page or, with `size`, a file's size, as it was after operation `at`."""

    at: int
    data: bytes = b""
    digest: str = ""
    size: int = 0


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


UNWRITTEN = Version(-1, _ZERO_PAGE, digest(_ZERO_PAGE))


@dataclass(frozen=True, slots=True)
class Dirty:
    """A file that is not wholly durable: the legal sizes and page versions, durable one first."""

    sizes: list[int]
    pages: dict[int, list[Version]]


class Uncertain(NamedTuple):
    """Changes of names that are not durable, oldest first, and files that are not."""

    names: list[int]
    dirty: dict[int, Dirty]


class File:
    """Everything that one inode's data ever was."""

    def __init__(self) -> None:
        self.sizes: list[Version] = [Version(-1)]
        self.pages: dict[int, list[Version]] = {}
        self.syncs: list[tuple[int, int, tuple[int, int] | None]] = []
        self._changes: list[int] = []
        self._touched: list[list[int]] = []

    def write(self, at: int, offset: int, data: bytes) -> None:
        end = offset + len(data)
        touched = list(range(offset // PAGE, -(-end // PAGE)))
        for page in touched:
            start, stop = max(offset, page * PAGE), min(end, (page + 1) * PAGE)
            self._put(at, page, start - page * PAGE, data[start - offset : stop - offset])
        if end > self.sizes[-1].size:
            self.sizes.append(Version(at, size=end))
        self._changed(at, touched)

    def resize(self, at: int, size: int) -> None:
        touched = []
        for page in [page for page in self.pages if (page + 1) * PAGE > size]:
            start = max(0, size - page * PAGE)
            if any(self.pages[page][-1].data[start:]):
                self._put(at, page, start, bytes(PAGE - start))
                touched.append(page)
        self.sizes.append(Version(at, size=size))
        self._changed(at, touched)

    def _put(self, at: int, page: int, start: int, data: bytes) -> None:
        versions = self.pages.setdefault(page, [UNWRITTEN])
        old = versions[-1].data
        new = old[:start] + data + old[start + len(data) :]
        versions.append(Version(at, new, digest(new)))

    def _changed(self, at: int, touched: list[int]) -> None:
        self._changes.append(at)
        self._touched.append(touched)

    def last_change(self, now: int) -> int:
        found = bisect_right(self._changes, now)
        return self._changes[found - 1] if found else -1

    def _touched_since(self, durable: int, now: int, also: frozenset[int]) -> set[int] | None:
        """Pages changed since operation `durable`; None if nothing changed, not even the size."""
        first = bisect_right(self._changes, durable)
        last = bisect_right(self._changes, now)
        while last < len(self._changes) and self._changes[last] in also:
            last += 1
        return set().union(*self._touched[first:last]) if first < last else None

    def dirty(self, now: int, also: frozenset[int]) -> Dirty | None:
        """None if the file is durable; `also` are later operations that were under way."""
        syncs = [(cover, extent) for at, cover, extent in self.syncs if at < now]
        whole = max((cover for cover, extent in syncs if extent is None), default=-1)
        touched = self._touched_since(whole, now, also)
        if touched is None:
            return None
        ranged = [(cover, extent) for cover, extent in syncs if extent and cover > whole]
        pages = {}
        for page in sorted(touched):
            low, high = page * PAGE, (page + 1) * PAGE
            covers = [cover for cover, extent in ranged if extent[0] < high and extent[1] > low]
            legal = _between(self.pages[page], max([whole, *covers]), now, also)
            if len(legal) > 1:
                pages[page] = legal
        durable = max([whole, *(cover for cover, _ in ranged)])
        sizes = [version.size for version in _between(self.sizes, durable, now, also)]
        return Dirty(sizes, pages) if pages or len(sizes) > 1 else None


def latest(versions: list[Version], now: int) -> Version:
    """The version that operation `now` found or left; the first of all is always there."""
    return versions[bisect_right(versions, now, key=lambda version: version.at) - 1]


def _between(
    versions: list[Version], durable: int, now: int, also: frozenset[int]
) -> list[Version]:
    """The version that operation `durable` left, and those since, up to operation `now`.

    Of the operations under way only the next one is taken: a later one would bring along what
    had not yet begun.
    """
    first = bisect_right(versions, durable, key=lambda version: version.at) - 1
    last = bisect_right(versions, now, key=lambda version: version.at)
    if last < len(versions) and versions[last].at in also:
        last += 1
    return versions[first:last]


def _end(operations: Sequence[ops.Op]) -> ops.End:
    """A crash after everything returned has a place too."""
    clock = operations[-1].seq + 1 if operations else 0
    return ops.End(seq=clock, begun=clock)


class History:
    """A list of operations, prepared to answer what is legal after a crash at each of them."""

    def __init__(self, operations: Sequence[ops.Op], order: Order = "any") -> None:
        self.ops = [*operations, _end(operations)]
        self.order = order
        self.start = sum(op.pid == ops.SETUP_PID for op in self.ops)
        self.files: dict[int, File] = {}
        self.directories = {op.ino for op in self.ops if isinstance(op, ops.Mkdir)} | {ops.ROOT}
        self.names = Names(self.ops)
        self._acks = [(at, op.text) for at, op in enumerate(self.ops) if isinstance(op, ops.Ack)]
        returned = [op.seq for op in self.ops]
        for at, op in enumerate(self.ops):
            if isinstance(op, ops.Create):
                self._file(op.ino)
            elif isinstance(op, ops.Write):
                self._file(op.ino).write(at, op.offset, op.data)
            elif isinstance(op, ops.Truncate):
                self._file(op.ino).resize(at, op.size)
            elif isinstance(op, ops.Sync):
                self._sync(at, op, bisect_left(returned, op.begun) - 1)
        self._under_way = self._overlaps(returned)
        self._uncertain: dict[int, Uncertain] = {}

    def _file(self, ino: int) -> File:
        return self.files.setdefault(ino, File())

    def _sync(self, at: int, op: ops.Sync, cover: int) -> None:
        targets = self.files if op.ino == ops.EVERYTHING else [op.ino]
        for ino in targets:
            if ino in self.files:
                self.files[ino].syncs.append((at, cover, op.extent))
        self.names.sync(at, op.ino, cover)

    def _overlaps(self, returned: list[int]) -> dict[int, frozenset[int]]:
        """For each operation those later in the list that had begun before it returned."""
        found: dict[int, set[int]] = {}
        for later, op in enumerate(self.ops):
            if isinstance(op, ops.Sync | ops.Ack | ops.End):
                continue
            for at in range(bisect_right(returned, op.begun), later):
                found.setdefault(at, set()).add(later)
        return {at: frozenset(later) for at, later in found.items()}

    def heard(self, now: int) -> int:
        """How many acknowledgements the world may have by operation `now`, it included."""
        return bisect_right(self._acks, now, key=lambda ack: ack[0])

    def acks(self, now: int) -> tuple[str, ...]:
        return tuple(text for _, text in self._acks[: self.heard(now)])

    def uncertain(self, now: int) -> Uncertain:
        """What a power cut at operation `now` may take away, in part or whole."""
        if now not in self._uncertain:
            also = self._under_way.get(now, frozenset())
            found = {ino: file.dirty(now, also) for ino, file in self.files.items()}
            dirty = {ino: file for ino, file in found.items() if file}
            self._uncertain[now] = Uncertain(self.names.pending(now, also, self.order), dirty)
        return self._uncertain[now]
