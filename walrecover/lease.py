"""The lease of an attempt: a counter that its holder moves, for observers who cannot see the
holder's process (another host, another container).

Owns the counter's file and both sides of it. It saves people from starting a run twice; safety
never depends on it (rule 15): a holder that was only slow is fenced by the sequence.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from walrecover.errors import Corrupt
from walrecover.files import make_directory, read_regular, replace_file

LENGTH_SECONDS = 30.0
BEAT_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_NAME = "lease"
_MOST_BYTES = 1024


class Lease:
    """The holder's side: moves the counter until released, or until the process ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._identity = os.urandom(4).hex()
        self._released = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._keep, name="walrecover-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()

    def _keep(self) -> None:
        count = 0
        while not self._released.wait(BEAT_SECONDS):
            count += 1
            self._beat(count)

    def _beat(self, count: int) -> None:
        with contextlib.suppress(OSError):  # the folder goes when a newer attempt cleans up
            replace_file(self._path, f"{self._identity} {count}\n".encode())


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the lease of an attempt for as long as the block takes."""
    make_directory(folder)
    lease = Lease(folder)
    try:
        yield
    finally:
        lease.release()


def is_held(folder: Path, length: float | None = None) -> bool:
    """Whether the counter moves within the lease's length, on this process's monotonic clock.

    Returns as soon as it has moved; a counter that stands still is watched for the whole length.
    """
    before = counter(folder)
    deadline = time.monotonic() + (LENGTH_SECONDS if length is None else length)
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        if counter(folder) != before:
            return True
    return False


def counter(folder: Path) -> bytes:
    """What the holder last wrote; nothing where there is no lease."""
    try:
        return read_regular(folder, _NAME, _MOST_BYTES)
    except (OSError, Corrupt):
        return b""
