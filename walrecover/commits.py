"""What rank 0 does with votes: commit, read back, retire. One step at a time, whoever drives it.

Owns which captures wait for votes, which commits wait to be read back, and what is noted of it.
Knows no sockets and no waiting: the caller asks again. One thread drives it; another one may
`expect`, and ask what is `waiting` and `unverified`, meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from walrecover import entries as model
from walrecover import events as ev
from walrecover import snapshot
from walrecover.entries import CommitEntry, Entry, SnapshotRef, snapshot_name
from walrecover.errors import Corrupt, Fenced, StorageFailed
from walrecover.failpoints import failpoint
from walrecover.files import sync_directory
from walrecover.references import distrust
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.snapshot import DeadReference, Disagreed

LOOK_SECONDS = 1.0


class Key(NamedTuple):
    """A capture of an attempt. The end of a step comes behind the step's own boundary."""

    step: int
    end: bool


def key_of(commit: CommitEntry) -> Key:
    return Key(commit.snapshot.step, commit.snapshot.end)


class Attempt(NamedTuple):
    """Whose votes they are."""

    number: int
    nonce: str
    world: int

    def commits(self, found: list[Entry]) -> list[CommitEntry]:
        """Those of this attempt, oldest first."""
        return [c for c in model.commits(found) if c.snapshot.nonce == self.nonce]

    def newest(self, found: list[Entry]) -> CommitEntry | None:
        """The last commit of this attempt."""
        own = self.commits(found)
        return own[-1] if own else None


def enter(run: RunDir, attempt: Attempt, key: Key, *, finished: bool) -> CommitEntry | None:
    """Commit, or find it committed: another rank, or another process of this one, may have been
    quicker. None while votes are missing. Raises as `snapshot.commit`."""
    try:
        return snapshot.commit(
            run,
            step=key.step,
            end=key.end,
            attempt=attempt.number,
            nonce=attempt.nonce,
            world=attempt.world,
            finished=finished,
        )
    except Disagreed:
        entered = attempt.commits(Sequence(run.sequence).read())
        for entry in reversed(entered):
            if key_of(entry) == key:
                sync_directory(run.sequence)  # nobody acts on it before it is durable (rule 1)
                return entry
        raise


class Commits:
    """Rank 0's captures of one attempt, from the vote on.

    `verified`: manifests that were read back before. `note` takes events, `say` a line for people;
    `told` hears of every capture once: its commit, or why it will never be one.
    """

    def __init__(
        self,
        run: RunDir,
        attempt: Attempt,
        *,
        verified: frozenset[str],
        retention: int,
        note: Callable[[ev.Event], object],
        say: Callable[[str], object],
        told: Callable[[Key, CommitEntry | str], object] = lambda key, what: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._attempt, self._retention = run, attempt, retention
        self._note, self._say, self._told, self._clock = note, say, told, clock
        self._verified = set(verified)
        self._waiting: deque[tuple[Key, bool]] = deque()
        self._unverified: deque[CommitEntry] = deque()
        self._next_look = 0.0
        self.committed: Key | None = None

    @property
    def waiting(self) -> tuple[Key, ...]:
        """Captures that lack votes, oldest first."""
        return tuple(key for key, _ in tuple(self._waiting))

    @property
    def unverified(self) -> int:
        """Commits that were not read back yet."""
        return len(self._unverified)

    def expect(self, key: Key, *, finished: bool = False) -> None:
        """This rank has voted."""
        if key not in self.waiting:
            self._waiting.append((key, finished))

    def resume(self) -> None:
        """Expect what an earlier process of this rank voted for and did not see committed."""
        newest = self._attempt.newest(Sequence(self._run.sequence).read())
        floor = key_of(newest) if newest else Key(0, False)
        for key in snapshot.voted(self._run, self._attempt.number, self._attempt.nonce, rank=0):
            if Key(*key) > floor:
                self.expect(Key(*key), finished=key[1])

    def settle(self) -> None:
        """Commit what all ranks have voted for: a newer capture overtakes an older one that lacks
        votes. Raises Fenced."""
        while self._waiting:
            for place in range(len(self._waiting) - 1, -1, -1):
                key, finished = self._waiting[place]
                if self._commit(key, finished):
                    break
            else:
                self._look_for_successor()
                return
            overtaken = place if self.committed == key else 0  # not by one that was abandoned
            for _ in range(overtaken):
                older, _ = self._waiting.popleft()
                self.abandon(older, f"step {key.step} was committed before all had voted")
            del self._waiting[place - overtaken]

    def _commit(self, key: Key, finished: bool) -> bool:
        """False while votes are missing."""
        try:
            entry = enter(self._run, self._attempt, key, finished=finished)
        except (Disagreed, StorageFailed, Corrupt, OSError) as error:
            if isinstance(error, DeadReference):
                self._distrust(
                    snapshot_name(key.step, self._attempt.number, self._attempt.nonce, key.end)
                )
            self.abandon(key, str(error))
            return True
        if entry is None:
            return False
        self.committed = key
        self._note(
            ev.SnapshotCommitted(step=key.step, end=key.end, manifest=entry.snapshot.manifest)
        )
        self._unverified.append(entry)
        self._told(key, entry)
        return True

    def _distrust(self, name: str) -> None:
        distrust(self._run, self._attempt.number, self._attempt.nonce, name)

    def abandon(self, key: Key, reason: str) -> None:
        self._say(f"the snapshot of step {key.step} was abandoned: {reason}")
        self._note(ev.SnapshotAbandoned(step=key.step, end=key.end, reason=reason))
        self._told(key, reason)

    def drop(self) -> None:
        """A newer attempt has taken the run over: nothing of this is anybody's any more."""
        self._waiting.clear()
        self._unverified.clear()

    def give_up(self, reason: str) -> None:
        """No more votes will come."""
        while self._waiting:
            self.abandon(self._waiting.popleft()[0], reason)

    def _look_for_successor(self) -> None:
        """Votes that a newer attempt has swept away never come. Raises Fenced, looks seldom."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_SECONDS
            require_newest(self._run, self._attempt)

    def read_back(self) -> None:
        """Read back the newest commit, then retire what it replaced. What fails here is said and
        tried again after the next commit, never at once: the disk may be full. Raises Fenced."""
        if not self._unverified:
            return
        # What they replaced may go unread. Where several came meanwhile, the one before the newest
        # is read, too: of what does not change every other one lists the same files, and nothing is
        # retired before two are known to verify that share none.
        newest = list(self._unverified)[-2:]
        try:
            if all(self._is_verified(entry.snapshot) for entry in reversed(newest)):
                self._retire()
        finally:
            while self._unverified and self._unverified.popleft() is not newest[-1]:
                pass

    def _is_verified(self, ref: SnapshotRef) -> bool:
        try:
            snapshot.verify(self._run, ref)
        except (Corrupt, OSError) as error:
            self._say(f"the snapshot of step {ref.step} does not read back: {error}")
            self._distrust(ref.name)
            return False
        self._verified.add(ref.manifest)
        self._note(ev.SnapshotVerified(step=ref.step, end=ref.end, manifest=ref.manifest))
        failpoint("snapshot.verified")
        return True

    def _retire(self) -> None:
        retired = snapshot.retire(
            self._run,
            attempt=self._attempt.number,
            nonce=self._attempt.nonce,
            verified=frozenset(self._verified),
            keep=self._retention,
        )
        if retired:
            self._note(ev.SnapshotsRetired(names=tuple(ref.name for ref in retired)))


def require_newest(run: RunDir, attempt: Attempt) -> None:
    """Raises Fenced unless the attempt is the newest of the sequence (P4)."""
    snapshot.require_newest(Sequence(run.sequence).read(), attempt.number, attempt.nonce)


__all__ = ["Attempt", "Commits", "Fenced", "Key", "enter", "key_of", "require_newest"]
