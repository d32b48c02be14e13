"""The writer of a stream: appends in microseconds, durable when asked.

Owns one LMDB environment, its writer thread and its failure. Must not interpret events, decide
which events there are, or read other streams.

An event passes through three states:

    appended    in this process's memory; `append` returned its LSN
    committed   survives this process: its group is in the kernel's hands (`committed`)
    durable     survives the machine: a later group is committed, or `sync` returned (`durable`)

The environment is opened with sync and without metasync. A commit then writes its pages, waits for
fdatasync, and writes the meta page that names them without waiting. The order keeps integrity over
a power cut: a meta page reaches the disk only after all that it points to, the other meta page is
the group before, made durable by this group's own fdatasync, and LMDB reuses no page which that
one still needs. So a power cut undoes at most the last group, whole, and never one that `sync`
waited for. The price is one fdatasync a group rather than two.

After a failed commit or fsync the stream is failed for good: the kernel may have dropped the pages
and would report success the next time (P9). What was durable stays so.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

import lmdb

from walrecover import codec, events
from walrecover.errors import BadInput, StorageFailed, WalrecoverError
from walrecover.events import AttemptBegun, Event
from walrecover.failpoints import failpoint
from walrecover.files import storage
from walrecover.journal import environment as environments
from walrecover.journal.committer import Committer
from walrecover.journal.creation import create_folder
from walrecover.journal.environment import Environment, guard_owner
from walrecover.journal.stream import START, Cursor, StreamId, key_of

GROUP = 1024
GATHER_SECONDS = 0.005
IDLE_SECONDS = 1.0
MAP_BYTES = 64 << 20


class Journal:
    """One stream, open for appending by the process that created it. Safe from any thread.

    Not from a signal handler: it could interrupt an append of its own thread.
    """

    @classmethod
    def create(
        cls, path: Path, *, attempt: int, first: AttemptBegun, map_bytes: int = MAP_BYTES
    ) -> Journal:
        """Create the stream at `path` with its first event; all or nothing, durable on return.

        Raises BadInput where the stream exists (streams are never reopened), StorageFailed where
        the disk refuses.
        """
        if first.attempt != attempt:
            raise BadInput(f"the first event says attempt {first.attempt}, not {attempt}")
        stream = StreamId(first.attempt, first.nonce, first.writer)
        envelope = codec.seal(events.encode(first), lsn=1, attempt=attempt, chain=START.chain)
        try:
            with storage(f"the stream {path}"):
                create_folder(path, [(key_of(1), envelope)], map_bytes)
            environment = environments.open_for_writing(path, map_size=map_bytes)
        except lmdb.Error as error:
            raise StorageFailed(f"the stream {path}: {error}") from error
        return cls(path, stream, environment, Cursor(1, codec.chain_of(envelope)))

    def __init__(
        self, path: Path, stream: StreamId, environment: Environment, head: Cursor
    ) -> None:
        """Use `create`."""
        self.path = path
        self.stream = stream
        self._environment = environment
        self._committer = Committer(environment, stream.attempt, head)
        self._owner = os.getpid()
        self._appending = threading.Lock()
        self._waiting: list[Event | Callable[[], Event]] = []
        self._taken = head.lsn  # by the writer thread, out of `_waiting`
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._asleep = False  # the writer thread, so that an event must wake it
        self._changed = threading.Condition(threading.Lock())
        self._durable = head
        self._wanted = 0
        self._closing = False
        self._failure: str | None = None
        self._cause: BaseException | None = None
        # A daemon, so that a hung disk cannot hold the interpreter's exit before `_close_all`
        # runs; what was appended before a normal exit is written there.
        self._thread = threading.Thread(target=self._serve, name=f"journal {stream}", daemon=True)
        self._thread.start()
        _living.add(self)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def appended(self) -> int:
        """The newest LSN that `append` returned."""
        with self._appending:
            return self._taken + len(self._waiting)

    @property
    def committed(self) -> int:
        """The newest LSN that survives the death of this process."""
        return self._committer.head.lsn

    @property
    def durable(self) -> int:
        """The newest LSN that survives the death of this machine."""
        return self._durable.lsn

    @property
    def failure(self) -> str | None:
        """Why the stream can no longer be written, or None."""
        return self._failure

    def append(self, event: Event | Callable[[], Event]) -> int:
        """Hand an event to the writer thread and return its LSN.

        It is encoded later, so nothing in it (a dict of scalars) may change afterwards. It may be
        made later, too, in that thread and in the order of LSNs.
        """
        guard_owner(self._owner)
        try:
            failpoint("journal.append")
        except OSError as error:
            raise StorageFailed(f"the stream {self.path}: {error}") from error
        with self._appending:
            if self._failure is not None or self._closing:
                raise self._refusal()
            # The LSN follows from the list, so that a KeyboardInterrupt between the two lines
            # cannot leave an event without its number or a number without its event.
            self._waiting.append(event)
            lsn = self._taken + len(self._waiting)
        if self._asleep:
            self._wake.put(None)
        return lsn

    def sync(self, lsn: int | None = None, timeout: float | None = None) -> Cursor:
        """Wait until the events through `lsn` (default: all appended) are durable.

        Returns the newest durable event. Raises StorageFailed where the stream has failed before,
        or where `timeout` seconds passed; after the latter the events may still become durable.
        """
        guard_owner(self._owner)
        newest = self.appended
        wanted = newest if lsn is None else lsn
        if wanted > newest:
            raise BadInput(f"event {wanted} was never appended; the newest is {newest}")
        with self._changed:
            if self._durable.lsn < wanted:
                self._wanted = max(self._wanted, wanted)
                self._wake.put(None)
                if not self._changed.wait_for(lambda: self._settled(wanted), timeout):
                    raise StorageFailed(
                        f"the stream {self.path}: event {wanted} is not durable after {timeout:g} s"
                    )
            if self._durable.lsn < wanted:
                raise self._refusal()
            return self._durable

    def await_committed(self, lsn: int, timeout: float) -> bool:
        """Wait until the events through `lsn` survive the death of this process; False where they
        do not after `timeout` seconds, or the stream has failed."""
        if self.committed < lsn:
            with self._changed:
                self._wake.put(None)
                self._changed.wait_for(
                    lambda: self.committed >= lsn or self._failure is not None, timeout
                )
        return self.committed >= lsn

    def _settled(self, wanted: int) -> bool:
        return self._durable.lsn >= wanted or self._failure is not None

    def envelopes(self, after: int, upto: int) -> list[bytes]:
        """The sealed bytes of the events behind `after`, through `upto`, which are committed."""
        guard_owner(self._owner)
        if self._closing:
            raise BadInput(f"the stream {self.path} is closed")
        if not 0 <= after <= upto <= self.committed:
            raise BadInput(f"events {after + 1} to {upto} are not all committed ({self.committed})")
        with self._environment.reading() as transaction:
            cursor = transaction.cursor()
            cursor.set_range(key_of(after + 1))
            return list(islice(cursor.iternext(keys=False), upto - after))

    def close(self) -> None:
        """Make everything appended durable and let go. Does nothing in a forked child, or twice.

        Raises StorageFailed where some of it could not be made durable.
        """
        if self._owner != os.getpid():
            return
        with self._appending:
            if self._closing:
                return
            self._closing = True
        self._wake.put(None)
        self._thread.join()
        _living.discard(self)
        environments.release(self._environment)
        if self._durable.lsn < self.appended:
            raise self._refusal()

    def _refusal(self) -> WalrecoverError:
        if self._failure is None:
            return BadInput(f"the stream {self.path} is closed")
        refusal = StorageFailed(self._failure)
        refusal.__cause__ = self._cause
        return refusal

    # The writer thread.

    def _serve(self) -> None:
        try:
            while self._serve_once():
                pass
        except BaseException as error:
            self._fail(error)

    def _serve_once(self) -> bool:
        closing = self._closing  # nothing is appended once this is set
        quiet = not closing and not self._wait()
        group = self._take()
        if group:
            before = self._committer.head
            self._committer.commit(group)
            self._announce(before)  # its meta page went to the disk with this group's pages
        done = closing and not group
        if self._unsynced() and (quiet or done or self._wanted > self._durable.lsn):
            self._committer.make_durable()
            self._announce(self._committer.head)
        return not done

    def _wait(self) -> bool:
        """Wait for something to do; False where nothing came for a while and a sync is due.

        Behind a group, events gather for a while before the next, and only `sync` and `close` cut
        it short: to wake this thread costs the loop more than the rest of `append`.
        """
        if self._woken(GATHER_SECONDS):
            return True
        with self._appending:
            if self._waiting:
                return True
            self._asleep = True
        woken = self._woken(IDLE_SECONDS if self._unsynced() else None)
        self._asleep = False
        return woken

    def _woken(self, timeout: float | None) -> bool:
        try:
            self._wake.get(timeout=timeout)
        except Empty:
            return False
        with contextlib.suppress(Empty):
            while True:
                self._wake.get(block=False)
        return True

    def _take(self) -> list[Event | Callable[[], Event]]:
        with self._appending:
            group = self._waiting[:GROUP]
            del self._waiting[:GROUP]
            self._taken += len(group)
        return group

    def _unsynced(self) -> bool:
        return self._durable.lsn < self._committer.head.lsn

    def _announce(self, durable: Cursor) -> None:
        with self._changed:
            self._durable = durable
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._cause = error
            self._failure = f"the stream {self.path} can no longer be written: {error}"
            self._changed.notify_all()


# Weak, so that the registry does not keep a closed journal; an open one is kept by its thread.
_living: weakref.WeakSet[Journal] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Losing nothing that was appended before a normal exit of the interpreter.

    Runs after the script's own threads ended and before daemon threads stop running. An error
    raised here is printed by the interpreter.
    """
    failures = []
    for journal in list(_living):
        try:
            journal.close()
        except WalrecoverError as error:
            failures.append(error)
    if failures:
        raise failures[0]
