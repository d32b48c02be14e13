"""What the supervisor leaves behind: its own stream of each attempt, and its lines on stderr.

Owns writing these so that neither a full disk nor a terminal that went away ends the training;
must not decide anything.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from walrecover.errors import StorageFailed
from walrecover.events import AttemptBegun, Event
from walrecover.journal import Journal
from walrecover.recovery import Begun
from walrecover.rundir import RunDir

WRITER = "supervisor"


def say(text: str) -> None:
    """One line to stderr."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"walrecover: {text}\n")
        sys.stderr.flush()


class Notes:
    """The supervisor's stream of one attempt. Raises StorageFailed only while it is created."""

    def __init__(self, run: RunDir, begun: Begun) -> None:
        entry = begun.entry
        first = AttemptBegun(
            at=time.time(),
            run=run.name,
            attempt=entry.number,
            nonce=entry.nonce,
            writer=WRITER,
            host=entry.holder.host,
            pid=entry.holder.pid,
        )
        path = run.stream(entry.number, entry.nonce, WRITER)
        self._whole = True
        self._journal = Journal.create(path, attempt=entry.number, first=first)
        self.append(begun.event)

    def append(self, event: Event) -> None:
        self._attempt(lambda: self._journal.append(event))

    def close(self) -> None:
        self._attempt(self._journal.close)

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except StorageFailed as error:
            if self._whole:
                say(f"the supervisor's journal cannot be written, the command goes on: {error}")
            self._whole = False
