"""A stream that begins with its first event: for processes that often have nothing to say.

Owns when the stream is made, and that its failure costs nothing but what it would have held.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from walrecover.errors import WalrecoverError
from walrecover.events import AttemptBegun, Event
from walrecover.journal.writer import Journal


class Notes:
    """`path`: of the stream. `begun`: its first event, without time, host and process. `failed` is
    told once that, and why, nothing can be noted."""

    def __init__(self, path: Path, begun: AttemptBegun, failed: Callable[[str], object]) -> None:
        self._path, self._begun, self._failed = path, begun, failed
        self._journal: Journal | None = None
        self._broken = False

    def note(self, event: Event) -> None:
        """Append an event, with the time that it is."""
        event = msgspec.structs.replace(event, at=time.time())
        try:
            if self._journal is None:
                first = msgspec.structs.replace(
                    self._begun, at=time.time(), host=os.uname().nodename, pid=os.getpid()
                )
                self._journal = Journal.create(self._path, attempt=first.attempt, first=first)
            self._journal.append(event)
        except (OSError, WalrecoverError) as error:
            if not self._broken:
                self._failed(str(error))
            self._broken = True

    def close(self) -> None:
        if self._journal is not None:
            with contextlib.suppress(OSError, WalrecoverError):
                self._journal.close()
