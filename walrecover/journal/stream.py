"""What names a stream and a place in it, and where streams lie.

Owns the identity of a stream, the cursor and the search for streams; opens none of them.
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from walrecover.codec import GENESIS
from walrecover.entries import attempt_label
from walrecover.errors import BadInput

_ATTEMPT = re.compile(r"a(0|[1-9][0-9]{0,9})-([0-9a-z]{1,32})", re.ASCII)
_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_LARGEST_ATTEMPT = 2**32 - 1

key_of = struct.Struct(">Q").pack
"""The key of an LSN: big-endian, so that LMDB's order is the order of LSNs."""


class StreamId(NamedTuple):
    """The events of one writer process of one attempt."""

    attempt: int
    nonce: str
    writer: str

    def __str__(self) -> str:
        return f"{attempt_label(self.attempt, self.nonce)}/{self.writer}"


class Cursor(NamedTuple):
    """A place in a stream: behind the event `lsn`, whose envelope has the digest `chain`.

    The digest belongs to it, since after a power cut an LSN that was never durable can come back
    as another event.
    """

    lsn: int
    chain: bytes


START = Cursor(0, GENESIS)


def stream_at(path: Path) -> StreamId:
    """The stream that a folder's path names. Raises BadInput where it names none."""
    attempt = _ATTEMPT.fullmatch(path.parent.name)
    if attempt is None or int(attempt[1]) > _LARGEST_ATTEMPT or not _WRITER.fullmatch(path.name):
        raise BadInput(f"{path} does not end in an attempt and a writer, as a stream's path does")
    return StreamId(int(attempt[1]), attempt[2], path.name)


def find_streams(root: Path) -> list[tuple[StreamId, Path]]:
    """Every stream below a run's journal folder, ordered by attempt, nonce and writer.

    Other names, temporary ones (a dot in front) and links are passed over. A stream is listed
    whatever its folder holds: a missing file is for `examine` to report.
    """
    found = []
    for attempt in _folders(root):
        for path in _folders(attempt):
            with suppress(BadInput):
                found.append((stream_at(path), path))
    return sorted(found)


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
