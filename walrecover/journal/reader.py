"""Reading a stream: every check on every event, in short transactions, never blocking a writer.

Owns the reader's loop. Must not write, interpret events or open a suspect environment: damage to
LMDB's own pages can kill the process that reads them, so what may be damaged goes through
`examine` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import lmdb

from walrecover.codec import chain_of, unseal
from walrecover.errors import Corrupt, StorageFailed, WalrecoverError
from walrecover.events import AttemptBegun, Event, Unknown, decode
from walrecover.journal import environment as environments
from walrecover.journal.checks import Checked, check
from walrecover.journal.stream import START, Cursor, StreamId, key_of, stream_at

CHUNK = 512

Numbered = tuple[int, Event | Unknown]
_Answer = TypeVar("_Answer")


class Rewound(Corrupt):
    """The event of the cursor is gone: a power cut undid events that were never durable.

    Read again from the start, or from an older cursor that holds.
    """


class Reader:
    """A stream, open for reading. For one thread at a time."""

    def __init__(self, path: Path, stream: StreamId | None = None, *, chunk: int = CHUNK) -> None:
        """Open a stream; by default the one that its path names.

        Raises Corrupt, UnsupportedVersion or StorageFailed where it cannot be opened.
        """
        self.path = path
        self.stream = stream_at(path) if stream is None else stream
        self._chunk = chunk
        self._closed = False
        try:
            self._environment = environments.open_for_reading(path)
        except lmdb.Error as error:
            raise environments.explain(error, path) from error
        except OSError as error:
            raise StorageFailed(f"{path}: {error}") from error

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            environments.release(self._environment)

    def read(self, after: Cursor | None = None, upto: int | None = None) -> Iterator[Numbered]:
        """The events behind the cursor (default: all), through LSN `upto` (default: the newest).

        Raises Corrupt, UnsupportedVersion or Rewound at the first event that is not good, after
        the good ones before it. Called again with a newer cursor, it goes on from there.
        """
        for first, checked in self._chunks(after or START, upto):
            payloads = checked.payloads
            yield from zip(range(first, first + len(payloads)), map(decode, payloads))  # noqa: B905
            if checked.problem is not None:
                raise checked.problem

    def batches(
        self, after: Cursor | None = None, upto: int | None = None
    ) -> Iterator[tuple[list[Numbered], Cursor]]:
        """As `read`, several events at a time, with the cursor behind the last of each batch."""
        for first, checked in self._chunks(after or START, upto):
            events: list[Numbered] = []
            problem = checked.problem
            try:
                for lsn, payload in enumerate(checked.payloads, first):
                    events.append((lsn, decode(payload)))
            except Corrupt as error:
                problem = error
            if events:
                yield events, Cursor(events[-1][0], checked.chains[len(events) - 1])
            if problem is not None:
                raise problem

    def envelopes(self, after: int, upto: int) -> list[bytes]:
        """The sealed bytes of the events behind `after`, through `upto`, each checked.

        Raises as `read`, and Corrupt where they are not all there.
        """
        cursor = self.cursor_at(after)
        found: list[bytes] = []
        while cursor.lsn < upto:
            first, wanted = cursor.lsn + 1, min(self._chunk, upto - cursor.lsn)
            envelopes, problem = self._fetch(first, wanted)
            checked = check(envelopes, first=first, attempt=self.stream.attempt, chain=cursor.chain)
            problem = checked.problem or problem
            if problem is None and len(envelopes) < wanted:
                problem = Corrupt(f"{self.path}: event {upto} is not there")
            if problem is not None:
                raise problem
            found += envelopes
            cursor = Cursor(cursor.lsn + wanted, checked.chains[-1])
        return found

    def payloads(
        self, after: Cursor | None = None, upto: int | None = None
    ) -> Iterator[list[bytes]]:
        """As `read`, several events at a time, and not decoded."""
        for _, checked in self._chunks(after or START, upto):
            yield checked.payloads
            if checked.problem is not None:
                raise checked.problem

    def head(self) -> Cursor:
        """The cursor behind the newest event. Only that event is checked."""
        entries, last = self._ask(lambda transaction: (_entries(transaction), _last(transaction)))
        if last is None:
            return START
        if last[0] != key_of(entries):
            raise Corrupt(f"{self.path}: counts {entries} events, and the last has another number")
        return self._cursor(entries, last[1])

    def cursor_at(self, lsn: int) -> Cursor:
        """The cursor behind an event that `read` gave. Raises Rewound where it is gone."""
        if lsn == 0:
            return START
        return self._cursor(lsn, self._ask(lambda transaction: transaction.get(key_of(lsn))))

    def _cursor(self, lsn: int, envelope: bytes | None) -> Cursor:
        if envelope is None:
            raise Rewound(f"{self.path}: event {lsn} is gone")
        unseal(envelope, lsn=lsn, attempt=self.stream.attempt, chain=None)
        return Cursor(lsn, chain_of(envelope))

    def _chunks(self, cursor: Cursor, upto: int | None) -> Iterator[tuple[int, Checked]]:
        if self.cursor_at(cursor.lsn) != cursor:
            raise Rewound(f"{self.path}: event {cursor.lsn} is not the one that was read before")
        ended = False
        while not ended:
            wanted = self._chunk if upto is None else min(self._chunk, upto - cursor.lsn)
            if wanted <= 0:
                return
            first = cursor.lsn + 1
            envelopes, problem = self._fetch(first, wanted)
            checked = check(envelopes, first=first, attempt=self.stream.attempt, chain=cursor.chain)
            if checked.problem is None:
                checked = checked._replace(problem=problem)
            if first == 1 and checked.payloads:
                self._recognise(checked.payloads[0])
            yield first, checked
            ended = len(envelopes) < wanted
            if envelopes:
                cursor = Cursor(cursor.lsn + len(envelopes), checked.chains[-1])

    def _fetch(self, first: int, wanted: int) -> tuple[list[bytes], WalrecoverError | None]:
        """Envelopes from LSN `first` on, fewer than wanted at the end; and what went wrong there.

        Keys are not compared one by one: each envelope carries its LSN under its checksum.
        """
        envelopes: list[bytes] = []
        try:
            with self._environment.reading() as transaction:
                cursor = transaction.cursor()
                if cursor.set_range(key_of(first)):
                    envelopes += islice(cursor.iternext(keys=False), wanted)
                last = first - 1 + len(envelopes)
                entries = _entries(transaction) if len(envelopes) < wanted else last
        except lmdb.Error as error:
            return envelopes, environments.explain(error, self.path)
        if entries != last:
            return envelopes, Corrupt(f"{self.path}: counts {entries} events, and {last} are there")
        return envelopes, None

    def _ask(self, question: Callable[[lmdb.Transaction[bytes]], _Answer]) -> _Answer:
        try:
            with self._environment.reading() as transaction:
                return question(transaction)
        except lmdb.Error as error:
            raise environments.explain(error, self.path) from error

    def _recognise(self, payload: bytes) -> None:
        event = decode(payload)
        if not isinstance(event, AttemptBegun):
            raise Corrupt(f"{self.path}: does not begin with the event of its opening")
        found = StreamId(event.attempt, event.nonce, event.writer)
        if found != self.stream:
            raise Corrupt(f"{self.path}: holds the stream {found}, not {self.stream}")


def _entries(transaction: lmdb.Transaction[bytes]) -> int:
    return transaction.stat()["entries"]


def _last(transaction: lmdb.Transaction[bytes]) -> tuple[bytes, bytes] | None:
    cursor = transaction.cursor()
    return cursor.item() if cursor.last() else None
