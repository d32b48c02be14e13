"""From a capture to a commit, in this process.

Owns when votes, commits and retention happen here. The vote is cast in the training thread, which
waits for the disk; rank 0's keeper thread, at the lowest priority, commits what all ranks have
voted for, reads it back, and retires what it replaced (`commits`). `background` does the same by
another process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import msgspec

from walrecover import commits, snapshot
from walrecover import entries as model
from walrecover import events as ev
from walrecover.checkpoints import Follower
from walrecover.commits import Attempt, Commits, Key, key_of
from walrecover.entries import CommitEntry, Entry, snapshot_name
from walrecover.errors import Corrupt, Fenced, StorageFailed, WalrecoverError
from walrecover.files import sync_directory
from walrecover.journal import Journal
from walrecover.manifest import Part, by_object, disagreement
from walrecover.references import References
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.snapshot import Capture, Disagreed

log = logging.getLogger("walrecover")
POLL_SECONDS = 0.005
WAIT_SECONDS = 120.0
FAREWELL_SECONDS = 1.0
GIVING_UP_SECONDS = 0.25


class Saver:
    """One rank's saving. `retention`: how many snapshots to keep. `base`: this rank's part of the
    plan's base.

    `failed` holds the Fenced error that ended it, to be raised in the training thread. `tried`: the
    newest capture, voted for or refused. `abandoned`: captures that cannot be committed, and why.
    `seconds`: how long its vote took. `noted` hears, at each vote, its step and the digest of each
    attached object's whole state.
    """

    def __init__(
        self,
        run: RunDir,
        journal: Journal,
        *,
        attempt: int,
        nonce: str,
        rank: int,
        world: int,
        verified: frozenset[str],
        retention: int,
        say: Callable[[str], None],
        base: Part | None = None,
        noted: Callable[[int, dict[str, bytes]], object] = lambda step, state: None,
    ) -> None:
        self.run, self.journal = run, journal
        self.attempt, self.nonce, self.rank, self.world = attempt, nonce, rank, world
        self.retention = retention
        self.say = say
        self.failed: Fenced | None = None
        self.committed: Key | None = None
        self.committed_lsn = 0
        self.tried: Key | None = None
        self.abandoned: dict[Key, str] = {}
        self.noted = noted
        self.seconds = 0.0
        self._part: Part | None = None
        self._references = References(run, attempt, nonce, base)
        self._lsns: dict[Key, int] = {}
        self._verified = verified
        self._whose = Attempt(attempt, nonce, world)
        self._commits = Commits(
            run,
            self._whose,
            verified=verified,
            retention=retention,
            note=self._journal,
            say=say,
            told=self._told,
        )
        self._follower = Follower(journal.path, journal.stream)
        self._changed = threading.Condition()
        self._closing = False
        self._idle = True
        self._keeper: threading.Thread | None = None

    @property
    def known(self) -> dict[str, str]:
        """The digests of the last vote's tensors, by name."""
        return {name: at.digest for name, at in self._part.tensors.items()} if self._part else {}

    def save(self, capture: Capture, *, finished: bool = False, lone: bool = False) -> bool:
        """Vote for a capture; False where the storage refused it (the last commit stands). Of
        several ranks the first commits it later, in its own time; not where `lone`."""
        began = time.monotonic()
        self.tried = key = Key(capture.step, capture.end)
        try:
            part = snapshot.vote(self.run, capture, self.journal, offers=self._references.offers())
        except (StorageFailed, OSError) as error:
            self.abandoned[key] = str(error)
            self._commits.abandon(key, str(error))
            return False
        self._references.cast(part)
        self._lsns[key] = part.lsn
        self._part = part
        state = by_object(capture.tree["objects"], self.known)
        self.seconds = time.monotonic() - began
        self.journal.append(
            ev.ShardsWritten(
                at=time.time(),
                step=capture.step,
                end=capture.end,
                files=tuple(
                    ev.WrittenFile(name, at.bytes, at.digest)
                    for name, at in part.files.items()
                    if name.startswith(f"{capture.name}/")
                ),
                seconds=self.seconds,
                state=state,
            )
        )
        self.noted(key.step, state)
        if self.rank == 0 and not (lone and self.world > 1):
            self._commits.expect(key, finished=finished)
            if self.world == 1:
                self._commit_now()
            self._wake()
        return True

    def prepare(self, capture: Capture) -> None:
        """Be ready for captures like this one."""

    def hold(self, capture: Capture) -> bool:
        """Keep a capture in memory, for when this process dies; False where that is not done."""
        return False

    def rescue(self) -> Key | None:
        """Have the newest capture saved that was only kept in memory, if it is the newest."""
        return None

    def pending(self) -> Key | None:
        """The newest capture, where it was given to be saved and its vote may still come."""
        return None

    def settle(self, key: Key, others: float, own: float = WAIT_SECONDS) -> bool:
        """On the way out: commit a capture once every rank has voted for it, whichever rank this
        is, for the first may be gone. False where the others have not after so many seconds, or
        this one, where its vote is to come yet, after `own`."""
        deadline = time.monotonic() + others
        sequence = Sequence(self.run.sequence)
        while not self._is_committed(key, sequence.read()):
            try:
                commits.enter(self.run, self._whose, key, finished=False)
            except Disagreed:  # a later one is committed, or the votes differ
                return self._is_committed(key, sequence.read())
            if time.monotonic() > deadline:
                return self._is_committed(key, sequence.read())
            time.sleep(POLL_SECONDS)
        return True

    def _is_committed(self, key: Key, found: list[Entry]) -> bool:
        newest = self._whose.newest(found)
        if newest is None or key_of(newest) < key:
            return False
        sync_directory(self.run.sequence)  # nobody acts on an entry before it is durable (rule 1)
        return True

    def too_late(self, left: float | None) -> str:
        """Why a snapshot is not begun any more, "" where it may be. `left`: seconds of grace."""
        if left is None or self.seconds <= left:
            return ""
        return f"{left:.1f} s are left, and the last snapshot took {self.seconds:.1f} s"

    def wait(self, key: Key, gives_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until a capture of this attempt is committed; False where it will not be, or
        where `gives_up` says so meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        if self.rank == 0:
            with self._changed:
                while self.failed is None and key in self._commits.waiting:
                    if time.monotonic() > deadline or gives_up():
                        break
                    self._changed.wait(GIVING_UP_SECONDS)
            return self.committed is not None and self.committed >= key
        sequence = Sequence(self.run.sequence)
        while time.monotonic() < deadline and not gives_up() and not self._is_disagreed(key):
            found = sequence.read()
            if self._is_committed(key, found):
                return True
            newest = model.newest_attempt(found)
            if newest is None or newest.nonce != self.nonce:
                return False
            time.sleep(POLL_SECONDS * 2)
        return False

    def _is_disagreed(self, key: Key) -> bool:
        """Whether rank 0 will abandon it: that follows from the votes alone."""
        try:
            parts = snapshot.read_votes(
                self.run, snapshot_name(key.step, self.attempt, self.nonce, key.end), self.world
            )
        except (Corrupt, OSError):
            return False
        return parts is not None and disagreement(parts) is not None

    def note_commits(self) -> None:
        """A rank other than 0 learns what was committed, so that its next vote leaves out events
        that lie behind a commit."""
        if self.rank == 0 or not self._lsns:
            return
        self._follower.catch_up(self.journal.durable)
        own = self._whose.commits(Sequence(self.run.sequence).read())
        if own:
            self._note(*map(key_of, own))

    def _note(self, *keys: Key) -> None:
        """These are committed, in this order."""
        key = keys[-1]
        self._references.committed(keys)
        self.committed = key
        self.committed_lsn = self._lsns.get(key, self.committed_lsn)
        self._lsns = {k: lsn for k, lsn in self._lsns.items() if k > key}

    def close(self, fails: bool = False) -> None:
        """Let the keeper finish what it began, then end it. Votes that are missing now will hardly
        come: where they are a dead rank's, this process must end, too, and soon. `fails`: as the
        script does, which may be started again."""
        with self._changed:
            self._changed.wait_for(lambda: not self._commits.waiting, FAREWELL_SECONDS)
            self._closing = True
            self._changed.notify_all()
        if self._keeper is not None:
            self._keeper.join(WAIT_SECONDS)

    def drain(self) -> None:
        """Wait until every commit was read back."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._idle and not self._commits.unverified, WAIT_SECONDS
            )

    # -- rank 0 ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(
                target=self._keep, name="walrecover-keeper", daemon=True
            )
            try:
                self._keeper.start()
            except RuntimeError:  # from 3.12 on no thread begins at the interpreter's end
                self._keeper = None
                self._work()
        with self._changed:
            self._changed.notify_all()

    def _journal(self, event: ev.Event) -> None:
        """What is noted of a commit: nothing depends on it."""
        try:
            self.journal.append(msgspec.structs.replace(event, at=time.time()))
        except StorageFailed:
            log.warning("the journal could not note it")

    def _told(self, key: Key, what: CommitEntry | str) -> None:
        if not isinstance(what, str):
            self._note(key)

    def _commit_now(self) -> None:
        """The only rank's vote is all there is to wait for."""
        try:
            self._commits.settle()
        except Fenced as error:
            self._fail(error)
        self._commits.give_up("its vote is gone")

    def _keep(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        except OSError:
            log.debug("the keeper runs at normal priority")
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                if self._closing and not self._commits.unverified:
                    return
                if not self._commits.waiting and not self._commits.unverified:
                    self._changed.wait()
                elif not self._commits.unverified:
                    self._changed.wait(POLL_SECONDS)
                self._idle = False
            if not self._work():
                return

    def _work(self) -> bool:
        """What there is to do now; False where this attempt was superseded."""
        try:
            if self.world > 1:  # else it is committed by the training thread
                self._commits.settle()
                with self._changed:
                    self._changed.notify_all()
            while self._commits.unverified:
                self._commits.read_back()
                self._follower.catch_up(self.journal.durable)
        except Fenced as error:
            self._fail(error)
            return False
        except (WalrecoverError, OSError) as error:
            log.warning("keeping snapshots: %s", error)
        return True

    def _fail(self, error: Fenced) -> None:
        with self._changed:
            self.failed = error
            self._commits.drop()
            self._idle = True
            self._changed.notify_all()
