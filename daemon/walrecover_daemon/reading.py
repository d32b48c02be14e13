"""Journals, opened for the follower: a few at a time, announced before they are touched.

Owns the open readers. Reading damaged pages can kill this process: `announce` says what is about
to be read, so that whoever starts it again knows which stream it was.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from walrecover.errors import StorageFailed
from walrecover.journal import Reader, StreamId, metapages
from walrecover_daemon.finding import data_of

MOST_OPEN = 64
CHUNK = 4096
"""Events of one read transaction."""


class Readers:
    def __init__(self, announce: Callable[[str], None]) -> None:
        self.announce = announce
        self._open: OrderedDict[Path, tuple[Reader, int]] = OrderedDict()

    def open(self, path: Path, stream: StreamId) -> Reader:
        """The reader of a stream; of the file that lies there now.

        Raises Corrupt, Torn, UnsupportedVersion or StorageFailed, and OSError where it is gone.
        """
        self.announce(str(path))
        inode = os.stat(data_of(path), follow_symlinks=False).st_ino
        known = self._open.pop(path, None)
        if known is not None and known[1] == inode:
            self._open[path] = known
            return known[0]
        if known is not None:
            known[0].close()
        if (problem := metapages.inspect(path)) is not None:
            raise problem
        while len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1][0].close()
        reader = Reader(path, stream, chunk=CHUNK)
        self._open[path] = reader, inode
        return reader

    def close(self, path: Path) -> None:
        if known := self._open.pop(path, None):
            known[0].close()

    def close_all(self) -> None:
        for path in list(self._open):
            self.close(path)


def cause_of(error: BaseException) -> tuple[str, str]:
    """The kind and the sentence of what a row says of its stream."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "Gone", "its file is not there any more"
    if isinstance(error, OSError):
        return StorageFailed.__name__, f"{error.strerror}: {error.filename}"
    return type(error).__name__, str(error)
