"""One stream: read from its cursor, folded, and written, rows with cursor.

Owns a stream in memory, and what its problems mean. Must not know of other streams, of runs'
stories, or of transactions.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from walrecover.errors import Corrupt, StorageFailed, UnsupportedVersion, WalrecoverError
from walrecover.journal import START, Cursor, Reader, Rewound, StreamId, examine
from walrecover.journal.reader import Numbered
from walrecover.state import StreamKey, StreamRecord, fold
from walrecover_daemon import finding
from walrecover_daemon.reading import Readers, cause_of
from walrecover_daemon.stepping import project
from walrecover_daemon.tables import StreamRow, Tables
from walrecover_daemon.telling import note_captures

SLICE = 16 * 1024
"""Events of one stream, or of one transaction, before others have their turn."""

WORTH_EVENTS = 1000
"""So many events later a folded record is stored again."""

REST_SECONDS = 2.0
"""A stream with a problem is not looked at for so long: its writer may go on writing."""


class Followed(msgspec.Struct):
    """What of a stream is folded: its record, and the captures that its rank wrote."""

    record: StreamRecord = msgspec.field(default_factory=StreamRecord)
    captures: dict[str, tuple[int, float]] = {}


_decode = msgspec.msgpack.Decoder(Followed).decode
_encode = msgspec.msgpack.Encoder().encode


class Stream:
    """A stream in memory. `folded_at`: how far `folded` has come; `stored`: how far it is kept."""

    def __init__(self, row: StreamRow) -> None:
        self.id = row.id
        self.key = StreamId(row.attempt, row.nonce, row.writer)
        self.cursor = Cursor(row.lsn, row.chain)
        self.folded_at, self.stored = Cursor(row.folded_lsn, row.folded_chain), row.folded_lsn
        self.folded = _decode(row.folded) if row.folded else Followed()
        self.mark, self.kind, self.problem = row.mark, row.kind, row.problem
        self.rest_until = 0.0


class Pass(NamedTuple):
    """What one look at a stream came to. `more`: it has more than a slice; `tells`: it changes the
    run's story; `voided`: rows went, as the events had. `mark`: the file as it was read."""

    events: int = 0
    more: bool = False
    tells: bool = False
    voided: bool = False
    mark: str = ""


class Streams:
    """`suspects`: paths of streams that a follower has died of while it read them."""

    def __init__(self, tables: Tables, readers: Readers, suspects: set[str]) -> None:
        self._tables, self._readers, self._suspects = tables, readers, suspects

    def follow(self, run: int, stream: Stream, path: Path) -> Pass:
        """Read on, at most a slice. The stream's problems go into its row."""
        if time.monotonic() < stream.rest_until:
            return Pass(mark=stream.mark)
        before = stream.kind, stream.problem
        count, more, tells, voided, mark = 0, False, False, False, ""
        stream.kind = stream.problem = ""
        try:
            mark = finding.mark_of(finding.data_of(path))
            upto = self._examined(stream, path, before[0], stream.cursor)
            reader = self._readers.open(path, stream.key)
            for pairs, cursor in reader.batches(stream.cursor, upto):
                self._readers.announce(str(path))
                tells = self._take(run, stream, pairs, cursor) or tells
                count += len(pairs)
                if count >= SLICE:
                    more = True
                    break
        except Rewound:
            self._void(stream)
            more = voided = True
        except (Corrupt, UnsupportedVersion, StorageFailed, OSError) as error:
            self._readers.close(path)
            stream.kind, stream.problem = cause_of(error)
            if isinstance(error, OSError | StorageFailed):
                mark = finding.GONE if stream.kind == "Gone" else ""
        finally:
            self._readers.announce("")
        if stream.problem:
            stream.rest_until = time.monotonic() + REST_SECONDS
        stream.mark = "" if more else mark
        self._tables.set_stream(stream.id, stream.cursor, stream.mark, stream.kind, stream.problem)
        self.store(stream, WORTH_EVENTS)
        tells = tells or voided or before != (stream.kind, stream.problem)
        return Pass(count, more, tells, voided, stream.mark)

    def fold_up(self, stream: Stream, path: Path) -> None:
        """Fold what has rows, and was not folded when the follower before this one died."""
        if stream.folded_at.lsn >= stream.cursor.lsn:
            return
        try:
            self._examined(stream, path, stream.kind, stream.folded_at)
            reader: Reader = self._readers.open(path, stream.key)
            for pairs, cursor in reader.batches(stream.folded_at, stream.cursor.lsn):
                _fold(stream, pairs, cursor, True)
        except Rewound:
            self._void(stream)
        except (WalrecoverError, OSError) as error:
            stream.kind, stream.problem = cause_of(error)
        finally:
            self._readers.announce("")

    def store(self, stream: Stream, worth: int = 0) -> None:
        """Keep what is folded, where more than so many events came since it was kept."""
        if stream.folded_at.lsn - stream.stored > worth:
            self._tables.set_folded(stream.id, stream.folded_at, _encode(stream.folded))
            stream.stored = stream.folded_at.lsn

    def forget(self, stream: Stream) -> None:
        """It belonged to another run of this name."""
        self._tables.void_stream(stream.id, forget=True)

    def _take(self, run: int, stream: Stream, pairs: list[Numbered], cursor: Cursor) -> bool:
        batch = project(run, stream.id, pairs)
        self._tables.add(stream.id, batch)
        _fold(stream, pairs, cursor, batch.tells)
        stream.cursor = cursor
        record = stream.folded.record
        trains = stream.key.writer.startswith("rank-")  # an attempt has the steps of its ranks
        last = record.last_step if batch.steps and trains else 0
        attempt = stream.key.attempt, stream.key.nonce
        self._tables.advance(run, attempt, last, record.latest)
        return batch.tells

    def _examined(self, stream: Stream, path: Path, kind: str, after: Cursor) -> int | None:
        """How far what may kill its reader can be read; None for all of it."""
        if str(path) not in self._suspects and kind not in ("Corrupt", "Torn"):
            return None
        self._suspects.discard(str(path))
        report = examine(path, stream.key, after)
        if report.kind == Rewound.__name__:
            raise Rewound(report.problem or "")
        if report.problem is None:
            return None
        stream.kind, stream.problem = report.kind, report.problem
        if not report.readable:
            report.check()
        return report.last

    def _void(self, stream: Stream) -> None:
        self._tables.void_stream(stream.id, forget=False)
        stream.cursor = stream.folded_at = START
        stream.folded, stream.stored = Followed(), 0


def _fold(stream: Stream, pairs: list[Numbered], cursor: Cursor, tells: bool) -> None:
    key = StreamKey(*stream.key)
    if tells:
        note_captures(stream.folded.captures, key, pairs)
    fold((), {key: pairs}, {key: stream.folded.record})
    stream.folded_at = cursor
