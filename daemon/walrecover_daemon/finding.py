"""Which runs and streams there are, and which of them have changed.

Owns listing directories and the marks of files; opens no journal. It changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from walrecover.entries import is_run_name
from walrecover.errors import BadInput
from walrecover.journal import StreamId, find_streams
from walrecover.journal.environment import DATA
from walrecover.rundir import DIRECTORY, RunDir, find_root

FRESH_SECONDS = 1.0
"""A file that was changed so shortly ago may change again without another time of change."""


class Place(NamedTuple):
    """A run: where it lies, and its name."""

    root: str
    name: str


class Stirred(NamedTuple):
    """What of a run may have changed. `streams` None: any of them."""

    place: Place
    streams: frozenset[tuple[str, str]] | None = None
    sequence: bool = True


def roots(given: tuple[str, ...]) -> list[Path]:
    """The `.walrecover` directories. Raises BadInput for what is none."""
    found = []
    for text in given or ("",):
        root = find_root(text or None)
        if not (root / "runs").is_dir() and (root / DIRECTORY).is_dir():
            root = root / DIRECTORY
        try:
            str(root).encode()
        except UnicodeEncodeError:
            raise BadInput(f"{str(root)!r} is no UTF-8: rename it, or give a link to it") from None
        if not root.is_dir():
            raise BadInput(
                f"{root} is not there: give a .walrecover directory, or the one that holds it"
            )
        if root not in found:
            found.append(root)
    return found


def mark_of(path: Path) -> str:
    """What tells that a file or folder has changed; "" where its next change may not show.

    Raises OSError where it cannot be looked at.
    """
    found = os.stat(path, follow_symlinks=False)
    if time.time() - found.st_mtime < FRESH_SECONDS:
        return ""
    return f"{found.st_dev}.{found.st_ino}.{found.st_size}.{found.st_mtime_ns}"


def data_of(stream: Path) -> Path:
    return stream / DATA


class Finder:
    """Lists, and remembers how everything was when it was last read."""

    def __init__(self, places: list[Path], journal: Path | None) -> None:
        self.roots, self._journal = places, journal
        self.unreadable: set[str] = set()
        self._sequences: dict[Place, str] = {}
        self._streams: dict[Place, dict[StreamId, str]] = {}

    def run(self, place: Place) -> RunDir:
        return RunDir(Path(place.root), place.name, self._journal)

    def read_sequence(self, place: Place, mark: str) -> None:
        self._sequences[place] = mark

    def read_stream(self, place: Place, stream: StreamId, mark: str) -> None:
        self._streams.setdefault(place, {})[stream] = mark

    def forget(self, place: Place) -> None:
        self._sequences.pop(place, None)
        self._streams.pop(place, None)

    def places(self) -> list[Place]:
        """Every run that is there, the newest of each directory first.

        One that must not be looked into is among them: the follower says so in its row.
        """
        found = []
        for root in self.roots:
            try:
                found += [Place(str(root), name) for name in _runs_below(root)]
                self.unreadable.discard(str(root))
            except OSError:
                self.unreadable.add(str(root))
        return found

    def changed(self, places: list[Place]) -> Iterator[Stirred]:
        """What has changed since it was read."""
        for place in places:
            run = self.run(place)
            sequence = self._differs(run.sequence, self._sequences.get(place))
            known = self._streams.get(place, {})
            found = dict(_streams_of(run))
            moved = {
                stream
                for stream, path in found.items()
                if self._differs(data_of(path), known.get(stream))
            } | {s for s, mark in known.items() if s not in found and mark != GONE}
            if sequence or moved:
                yield Stirred(place, frozenset(map(names_of, moved)), sequence)

    @staticmethod
    def _differs(path: Path, mark: str | None) -> bool:
        try:
            return not mark or mark_of(path) != mark
        except OSError:
            return mark != GONE


GONE = "gone"
"""The mark of what is not there, or cannot be looked at."""


def names_of(stream: StreamId) -> tuple[str, str]:
    """Attempt and writer as folders name them."""
    attempt, _, writer = str(stream).partition("/")
    return attempt, writer


def _runs_below(root: Path) -> list[str]:
    found = []
    try:
        with os.scandir(root / "runs") as entries:
            for entry in entries:
                if is_run_name(entry.name) and _may_be_run(Path(entry.path)):
                    found.append((entry.stat().st_mtime, entry.name))
    except FileNotFoundError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def _may_be_run(path: Path) -> bool:
    try:
        return (path / "sequence").is_dir()
    except OSError:
        return True


def _streams_of(run: RunDir) -> list[tuple[StreamId, Path]]:
    try:
        return find_streams(run.journal)
    except OSError:  # the follower says it when it tries
        return []
