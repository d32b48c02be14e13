"""Fold checkpoints: how far a stream was folded, kept beside it so that only its tail is read.

Owns the files `journal/<attempt>/<writer>.fold`. They are caches: one that is missing, damaged or
of another stream costs a full fold and nothing else, and a fold that starts from one is equal to
a full one. The cursor carries the chain digest, so that a stream which lost its unsynced tail to
a power cut does not pass for the one that was folded.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from blake3 import blake3

from walrecover.files import replace_file
from walrecover.journal import Cursor, Reader, StreamId
from walrecover.state import StreamKey, StreamRecord, fold

WORTH_EVENTS = 1000
_MAGIC = b"WALRFOLD2"  # another number wherever a record holds more: older ones lack it
_DIGEST_BYTES = 32


class _Kept(msgspec.Struct, frozen=True):
    stream: tuple[int, str, str]
    lsn: int
    chain: bytes
    record: StreamRecord


_decoder = msgspec.msgpack.Decoder(_Kept)


def path_of(stream_path: Path) -> Path:
    return stream_path.parent / f"{stream_path.name}.fold"


def load(stream_path: Path, stream: StreamId) -> tuple[Cursor, StreamRecord] | None:
    """The checkpoint of a stream, or None where there is none to be trusted."""
    try:
        data = path_of(stream_path).read_bytes()
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST_BYTES
    body = data[head:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : head] != blake3(body).digest():
        return None
    try:
        kept = _decoder.decode(body)
    except msgspec.DecodeError:
        return None
    if kept.stream != tuple(stream) or kept.record.lsn != kept.lsn:
        return None
    return Cursor(kept.lsn, kept.chain), kept.record


def store(stream_path: Path, stream: StreamId, cursor: Cursor, record: StreamRecord) -> None:
    """Keep a record that was folded through `cursor`. Losing it is harmless, so are errors."""
    name = (stream.attempt, stream.nonce, stream.writer)
    kept = _Kept(name, cursor.lsn, cursor.chain, record)
    body = msgspec.msgpack.encode(kept)
    try:
        replace_file(path_of(stream_path), _MAGIC + blake3(body).digest() + body)
    except OSError:
        return


class Follower:
    """Folds a stream of this process as it grows, and keeps its checkpoint."""

    def __init__(self, stream_path: Path, stream: StreamId) -> None:
        self._path, self._stream = stream_path, stream
        self._cursor: Cursor | None = None
        self._record = StreamRecord()

    def catch_up(self, upto: int) -> None:
        """Fold through LSN `upto`, where enough events have come since to be worth it."""
        if upto - self._record.lsn < WORTH_EVENTS:
            return
        key = StreamKey(*self._stream)
        with Reader(self._path) as reader:
            for events, cursor in reader.batches(self._cursor, upto):
                fold((), {key: events}, {key: self._record})
                self._cursor = cursor
        if self._cursor is not None:
            store(self._path, self._stream, self._cursor, self._record)
