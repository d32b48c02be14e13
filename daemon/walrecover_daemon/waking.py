"""What wakes the follower: inotify, by watchdog.

A hint, and nothing else: what it says is looked at, what it does not say the slow poll finds.
Owns the observer and the set of what has moved; reads no file.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

from walrecover.inotify import observer
from walrecover_daemon.finding import Place, Stirred

MOST_RUNS = 1000
"""Each run has about ten folders, and each folder takes a watch of the kernel's."""

_WANTED = [FileModifiedEvent, FileCreatedEvent, DirCreatedEvent, DirDeletedEvent, DirMovedEvent]


class Waker(FileSystemEventHandler):
    """`wake` is set whenever something has moved, and by whoever else wants the follower."""

    def __init__(self, roots: list[Path], journal: Path | None) -> None:
        self.wake = threading.Event()
        self.blind = ""
        self._roots = {os.fspath(root / "runs"): str(root) for root in roots}
        self._journal = os.fspath(journal) if journal else None
        self._observer = observer()
        self._lock = threading.Lock()
        self._moved: dict[Place, set[tuple[str, str]]] = {}
        self._sequences: set[Place] = set()
        self._anew = False

    def begin(self, runs: int) -> None:
        """Watch, where that can be had; else `blind` says why not."""
        if runs > MOST_RUNS:
            self.blind = f"{runs} runs are more than inotify is asked to watch ({MOST_RUNS})"
            return
        try:
            for folder in [*self._roots, *filter(None, [self._journal])]:
                if os.path.isdir(folder):
                    self._observer.schedule(self, folder, recursive=True, event_filter=_WANTED)
            self._observer.start()
        except OSError as error:
            self.blind = f"inotify refuses ({error.strerror or error})"

    def end(self) -> None:
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def take(self) -> tuple[list[Stirred], bool]:
        """What has moved since the last time, and whether there may be new runs or streams."""
        self.wake.clear()
        with self._lock:
            moved, self._moved = self._moved, {}
            sequences, self._sequences = self._sequences, set()
            anew, self._anew = self._anew, False
        return [
            Stirred(place, frozenset(moved.get(place, ())), place in sequences)
            for place in moved.keys() | sequences
        ], anew

    def dispatch(self, event: FileSystemEvent) -> None:
        """In watchdog's thread."""
        path = os.fsdecode(event.src_path)
        if event.is_directory:
            if "/snapshots" not in path and "/attempts" not in path:
                with self._lock:
                    self._anew = True
                self.wake.set()
            return
        for base, root in self._bases():
            if path.startswith(f"{base}/"):
                self._note(root, path[len(base) + 1 :].split("/"))
                return

    def _bases(self) -> list[tuple[str, str | None]]:
        found: list[tuple[str, str | None]] = list(self._roots.items())
        return [*found, (self._journal, None)] if self._journal else found

    def _note(self, root: str | None, parts: list[str]) -> None:
        """`root` None: below --journal-dir, which says nothing of the run's root."""
        roots = [root] if root else list(self._roots.values())
        if len(parts) == 5 and parts[1] == "journal" and parts[4] == "data.mdb":
            with self._lock:
                for each in roots:
                    self._moved.setdefault(Place(each, parts[0]), set()).add((parts[2], parts[3]))
        elif len(parts) == 3 and parts[1] == "sequence" and not parts[2].startswith("."):
            with self._lock:
                self._sequences.update(Place(each, parts[0]) for each in roots)
        else:
            return
        self.wake.set()
