"""Adopted files while the script writes them: seen finished, kept.

Owns when to look. inotify (watchdog) only wakes it: which files there are is read from the folders
each time, so that a lost event costs a second and no file. Must not put anything back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

from walrecover.adopt import wholeness
from walrecover.adopt.patterns import Pattern, Stamp, find
from walrecover.adopt.settling import Setting, Telling, keep
from walrecover.adopt.store import Store
from walrecover.adopt.tree import Changed, NotKept, open_stamped
from walrecover.errors import StorageFailed
from walrecover.inotify import observer

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchdog.observers.api import BaseObserver

LOOK_SECONDS = 1.0
STILL_SECONDS = 2.0
"""How long a file that cannot show whether it is whole must stand still."""

SHARE = 50
"""A look may take this part of the time: one that is slow comes less often."""

_SETTLE_SECONDS = 0.05
"""After an event: a saver writes several files, and a file several times."""


class Watching(FileSystemEventHandler):
    """Watches. `steps`: about how many steps were made by now. `waiting`: nothing is under way."""

    def __init__(
        self, store: Store, setting: Setting, telling: Telling, steps: Callable[[], int]
    ) -> None:
        self._store, self._setting, self._telling, self._steps = store, setting, telling, steps
        self._wake = threading.Event()
        self.waiting = False
        self._arrived: dict[str, int] = {}
        self._watched: set[Pattern] = set()
        self._observer: BaseObserver = observer()
        self._blind = False
        # What lay there when the attempt began was judged then.
        self._known = find(setting.tree, setting.patterns, setting.root)
        self._still: dict[str, tuple[Stamp, float]] = {}
        self._refused: set[str] = set()

    def begin(self) -> None:
        """From here on every event wakes `run`."""
        self._observer.start()
        self._follow()

    def run(self, leaving: Callable[[], bool]) -> None:
        """Until `leaving`: then what is kept is also in the journal."""
        pause = LOOK_SECONDS
        while not leaving():
            self.waiting = True
            if not leaving() and self._wake.wait(pause):
                time.sleep(_SETTLE_SECONDS)
            self.waiting = False
            self._wake.clear()
            began = time.monotonic()
            self._follow()
            self._look()
            pause = max(LOOK_SECONDS, SHARE * (time.monotonic() - began))

    # --- events ---------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Watch the folders that have come to be."""
        for pattern in self._setting.patterns:
            folder = self._setting.tree.joinpath(*pattern.base)
            if pattern in self._watched or not folder.is_dir():
                continue
            try:
                self._observer.schedule(
                    self,
                    os.fspath(folder),
                    recursive=pattern.deep,
                    event_filter=[FileClosedEvent, FileMovedEvent, DirCreatedEvent, DirMovedEvent],
                )
                self._watched.add(pattern)
            except OSError as error:
                if not self._blind:
                    self._telling.say(
                        f"no events from {folder} ({error.strerror}): it is looked at every "
                        f"{LOOK_SECONDS:g} s"
                    )
                self._blind = True

    def dispatch(self, event: FileSystemEvent) -> None:
        """In watchdog's thread."""
        if isinstance(event, FileMovedEvent):
            with contextlib.suppress(OSError):
                self._arrived[self._relative(event.dest_path)] = os.lstat(event.dest_path).st_ino
        elif isinstance(event, FileClosedEvent):
            self._arrived.pop(self._relative(event.src_path), None)
        self._wake.set()

    def _relative(self, path: bytes | str) -> str:
        return os.path.relpath(os.fsdecode(path), self._setting.tree)

    # --- looks ----------------------------------------------------------------------------------

    def _look(self) -> None:
        setting = self._setting
        stamps = find(setting.tree, setting.patterns, setting.root)
        for path in self._known.keys() - stamps.keys():
            del self._known[path]
        for path, stamp in sorted(stamps.items(), key=lambda item: item[1].mtime_ns):
            if self._known.get(path) != stamp and self._keep(path, stamp):
                self._known[path] = stamp
                self._still.pop(path, None)

    def _keep(self, path: str, stamp: Stamp) -> bool:
        """Keep it if it is finished; False where it has to be looked at again."""
        try:
            look = self._glance(path, stamp)
            if look.whole is False:
                return False  # most likely being written
            if look.whole is None and not self._stands_still(path, stamp):
                return False
            trust = f"it stood still for {STILL_SECONDS:g} s"
            keep(
                self._store,
                path,
                stamp,
                self._telling,
                arrived=self._arrived.get(path) == stamp.inode,
                step=self._steps(),
                trust=trust,
                clock=time.monotonic,
            )
        except Changed:
            return False
        except NotKept as error:
            if error.torn:
                return True  # whoever looks when the attempt has ended says so; until it changes
            self._say_once(path, str(error))
            return False
        except (OSError, StorageFailed) as error:
            if not isinstance(error, FileNotFoundError):
                self._say_once(path, f"{path}: {error}")
            return False
        self._refused.discard(path)
        return True

    def _glance(self, path: str, stamp: Stamp) -> wholeness.Look:
        """The cheap part of the check: a file that is being written fails it."""
        file, now = open_stamped(Path(self._setting.tree, path))
        with file:
            if now != stamp:
                raise Changed(f"{path} is being written")
            return wholeness.look(file, path, deep=False)

    def _stands_still(self, path: str, stamp: Stamp) -> bool:
        now = time.monotonic()
        before, since = self._still.get(path, (None, now))
        if before != stamp:
            since = now
        self._still[path] = (stamp, since)
        return now - since >= STILL_SECONDS

    def _say_once(self, path: str, what: str) -> None:
        if path not in self._refused:
            self._telling.say(f"not kept: {what}")
        self._refused.add(path)
