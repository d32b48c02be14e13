"""Makes a crash state real: from a choice to a tree, its digest, and files in a directory.

Owns: images of files and the digest that tells trees apart. It must not know why a state is
legal. A tree is told apart by its names, contents and hard links.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from . import ops
from .choices import Choice, FileState
from .model import PAGE, SECTOR, UNWRITTEN, Dirty, History, Version, digest, latest
from .names import Namespace


@dataclass(frozen=True, slots=True)
class Image:
    """A file's bytes as pages, of which each knows its digest."""

    size: int
    pages: Mapping[int, Version]
    digest: str

    def data(self) -> bytes:
        count = -(-self.size // PAGE)
        return b"".join(self._page(number).data for number in range(count))[: self.size]

    def _page(self, number: int) -> Version:
        return self.pages.get(number, UNWRITTEN)


def _image(size: int, pages: Mapping[int, Version]) -> Image:
    """The digest sees the pages below the size, the last one cut, and no others."""
    count, cut = -(-size // PAGE), size % PAGE
    digests = [pages.get(number, UNWRITTEN).digest for number in range(count)]
    if cut:
        digests[-1] = digest(pages.get(count - 1, UNWRITTEN).data[:cut])
    return Image(size, pages, digest(f"{size}:{''.join(digests)}".encode()))


EMPTY = _image(0, {})


@dataclass(frozen=True, slots=True)
class Tree:
    """Paths in order, a directory before what it holds; an image is None for a directory."""

    entries: list[tuple[str, int, Image | None]]

    def digest(self) -> str:
        first = dict[int, int]()
        lines = [
            f"{path}\0{first.setdefault(ino, index)}\0{image.digest if image else '/'}"
            for index, (path, ino, image) in enumerate(self.entries)
        ]
        return digest("\0".join(lines).encode(errors="surrogateescape"))

    def write(self, into: Path) -> None:
        """Creates the files below `into`, which exists and is empty."""
        base, first = str(into), dict[int, str]()
        for path, ino, image in self.entries:
            target = f"{base}/{path}"
            if image is None:
                os.mkdir(target)
            elif ino in first:
                os.link(first[ino], target)
            else:
                first[ino] = target
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, image.data())
                os.close(fd)


class Builder:
    def __init__(self, history: History) -> None:
        self._history = history
        self._settled = lru_cache(maxsize=4096)(self._make_settled)

    def tree(self, choice: Choice) -> Tree:
        return self._killed(choice) if choice.kill else self._cut(choice)

    def _killed(self, choice: Choice) -> Tree:
        history, images = self._history, dict[int, Image]()
        op = history.ops[choice.at]
        if choice.pages and isinstance(op, ops.Write):
            images[op.ino] = self._partly(op, choice)
        return self._collect(history.names.up_to(choice.upto), choice.upto, images)

    def _partly(self, op: ops.Write, choice: Choice) -> Image:
        """A write that the kill stopped at a page boundary."""
        before = self._at(op.ino, choice.upto)
        file, first = self._history.files[op.ino], op.offset // PAGE
        last = first + choice.pages
        done = {page: latest(file.pages[page], choice.at) for page in range(first, last)}
        end = min(last * PAGE, op.offset + len(op.data))
        return _image(max(before.size, end), {**before.pages, **done})

    def _cut(self, choice: Choice) -> Tree:
        pending, dirty = self._history.uncertain(choice.at)
        images = {
            ino: self._torn(ino, choice.at, dirty[ino], state)
            for ino, state in choice.files.items()
        }
        space = self._history.names.with_only(choice.at, pending, choice.names)
        return self._collect(space, choice.at, images)

    def _torn(self, ino: int, at: int, dirty: Dirty, state: FileState) -> Image:
        pages = dict(self._at(ino, at).pages)
        for page, versions in dirty.pages.items():
            pages[page] = versions[state.version]
        for page, first, cut, other in state.pages:
            versions = dirty.pages[page]
            pages[page] = _joined(versions[first], cut * SECTOR, versions[other])
        return _image(state.size, pages)

    def _at(self, ino: int, now: int) -> Image:
        file = self._history.files.get(ino)
        return self._settled(ino, file.last_change(now)) if file else EMPTY

    def _make_settled(self, ino: int, at: int) -> Image:
        file = self._history.files[ino]
        pages = {page: latest(versions, at) for page, versions in file.pages.items()}
        return _image(latest(file.sizes, at).size, pages)

    def _collect(self, space: Namespace, now: int, images: Mapping[int, Image]) -> Tree:
        directories, entries = self._history.directories, list[tuple[str, int, Image | None]]()

        def walk(directory: int, prefix: str) -> None:
            for name, ino in sorted(space.get(directory, {}).items()):
                if ino in directories:
                    entries.append((prefix + name, ino, None))
                    walk(ino, f"{prefix}{name}/")
                else:
                    entries.append((prefix + name, ino, images.get(ino) or self._at(ino, now)))

        walk(ops.ROOT, "")
        return Tree(entries)


def _joined(first: Version, cut: int, other: Version) -> Version:
    if cut == PAGE or first is other:
        return first
    data = first.data[:cut] + other.data[cut:]
    return Version(first.at, data, digest(data))


def clear(directory: str | Path) -> None:
    """Empties a directory."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                clear(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
