"""Committing groups of events to an open environment.

Owns the end of the stream (the newest LSN and its chain digest) and the growth of the map. For one
thread; any error that it raises is final, since a failed commit or fsync is never tried again (P9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import lmdb

from walrecover import codec, events
from walrecover.errors import StorageFailed
from walrecover.events import Event
from walrecover.failpoints import failpoint
from walrecover.journal.environment import Environment
from walrecover.journal.stream import Cursor, key_of

_COMMITS_PER_READER_CHECK = 256


class Committer:
    """The end of a stream. `head` is behind the newest committed event."""

    def __init__(self, environment: Environment, attempt: int, head: Cursor) -> None:
        self.head = head
        self._environment = environment
        self._attempt = attempt
        self._commits = 0

    def commit(self, group: Iterable[Event | Callable[[], Event]]) -> None:
        """Commit the events as one transaction: in the kernel's hands on return."""
        failpoint("journal.commit.before")
        lsn, chain = self.head
        items = []
        for given in group:
            lsn += 1
            event = given() if callable(given) else given
            envelope = codec.seal(events.encode(event), lsn=lsn, attempt=self._attempt, chain=chain)
            chain = codec.chain_of(envelope)
            items.append((key_of(lsn), envelope))
        while not self._put(items):
            self._grow()
        failpoint("journal.commit.after")
        self.head = Cursor(lsn, chain)
        self._commits += 1
        if self._commits % _COMMITS_PER_READER_CHECK == 0:
            # A killed reader pins every page that was freed since.
            self._environment.handle.reader_check()

    def make_durable(self) -> None:
        """On return all that is committed survives the machine."""
        self._environment.handle.sync(True)
        failpoint("journal.sync.after")

    def _put(self, items: list[tuple[bytes, bytes]]) -> bool:
        """False, and nothing done, where the map is full: no fsync was tried then."""
        try:
            with self._environment.handle.begin(write=True) as transaction:
                done = transaction.cursor().putmulti(items, append=True)
                if done != (len(items), len(items)):
                    raise StorageFailed(f"LMDB took {done[1]} of {len(items)} events")
        except lmdb.MapFullError:
            return False
        return True

    def _grow(self) -> None:
        handle = self._environment.handle
        handle.reader_check()
        with self._environment.still:
            handle.set_mapsize(2 * handle.info()["map_size"])
