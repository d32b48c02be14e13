"""The directory tree below the root as the calls built it, by inode.

Owns: names, directories and contents while a recording is parsed. It must not know system calls
or crashes.
"""

from __future__ import annotations

from collections.abc import Iterator

from .ops import ROOT

Parts = tuple[str, ...]


class Shadow:
    def __init__(self) -> None:
        self.directories: dict[int, dict[str, int]] = {ROOT: {}}
        self.contents: dict[int, bytearray] = {}
        self._names: dict[int, list[tuple[int, str]]] = {}
        self._next = ROOT + 1

    def lookup(self, parts: Parts) -> int | None:
        ino = ROOT
        for part in parts:
            entries = self.directories.get(ino)
            if entries is None or part not in entries:
                return None
            ino = entries[part]
        return ino

    def path(self, ino: int) -> str:
        """A name of this inode from the root; empty for the root and for what has no name."""
        parts: list[str] = []
        while names := self._names.get(ino):
            ino, name = names[-1]
            parts.append(name)
        return "/".join(reversed(parts))

    def paths(self, ino: int) -> set[str]:
        return {
            "/".join(filter(None, (self.path(directory), name)))
            for directory, name in self._names.get(ino, [])
        }

    def new_file(self) -> int:
        ino, self._next = self._next, self._next + 1
        self.contents[ino] = bytearray()
        return ino

    def new_directory(self) -> int:
        ino, self._next = self._next, self._next + 1
        self.directories[ino] = {}
        return ino

    def add(self, directory: int, name: str, ino: int) -> None:
        self.remove(directory, name)
        self.directories[directory][name] = ino
        self._names.setdefault(ino, []).append((directory, name))

    def remove(self, directory: int, name: str) -> int | None:
        ino = self.directories[directory].pop(name, None)
        if ino is not None:
            self._names[ino].remove((directory, name))
        return ino

    def write(self, ino: int, offset: int, data: bytes) -> None:
        content = self.contents[ino]
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    def resize(self, ino: int, size: int) -> None:
        content = self.contents[ino]
        if size < len(content):
            del content[size:]
        else:
            content.extend(bytes(size - len(content)))

    def walk(self, ino: int = ROOT, prefix: str = "") -> Iterator[tuple[str, int]]:
        for name, child in sorted(self.directories[ino].items()):
            path = f"{prefix}{name}"
            yield path, child
            if child in self.directories:
                yield from self.walk(child, f"{path}/")
