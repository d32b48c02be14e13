"""The program whose crash states are enumerated: a run of two ranks, without torch.

Owns: the order of events. It calls what a session calls, in two processes that are told by pipes
when to act, so that every recording holds the same story:

    attempt 1   steps 1 to 8, a snapshot at every second one; two of the four are retired, and what
                never changes stays in their folders, referenced by the others. Both
                ranks vote for step 10, and rank 0 stops just before its commit becomes an entry
    attempt 2   is entered meanwhile. The old rank 0 wakes and is fenced; both old ranks end as a
                kill would end them. Steps 9 to 12, a snapshot of 10, and one of the run's end,
                whose entry has its name when rank 0 stops before making that durable
    attempt 3   is entered meanwhile, on top of that entry. Then rank 0 finishes

Every promise is acknowledged at the moment at which it holds:

    attempt <number> <nonce>                           the entry and its plan
    event <attempt> <writer> <lsn> <chain>             this event and those before it
    vote <attempt> <rank> <step> <end> <digest>        the vote, and the files that it lists
    commit <step> <manifest>                           the snapshot
    retired <manifest>                                 may be gone from here on

With "early-commit" as its argument rank 0 commits each step before rank 1 has written anything,
as a protocol without votes would, and there are two snapshots. With "recover" it only enters the
next attempt and opens its streams, over whatever a crash has left.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.support import protocol
from walrecover import checkpoints, files, manifest, paced, recovery, shards, snapshot
from walrecover import events as ev
from walrecover.entries import AttemptEntry, SnapshotRef
from walrecover.errors import Fenced
from walrecover.failpoints import failpoint
from walrecover.journal import Cursor
from walrecover.reuse import Past
from walrecover.rundir import RunDir
from walrecover.snapshot import Capture

RUN = "run"
ROOT = ".walrecover"
WORLD = 2
KEPT = 2
EVENTS_WORTH_KEEPING = 6
SIZES = {"weights": 9000, "own": 5000, "author": 600, "frozen": 20000, "own frozen": 15000}
PACED = shards.Writing(shards.digests, lambda path, some: paced.put(path, some, lambda _: None))
"""As the saver writes; attempt 2 does, the others as a session without one."""
_fork = multiprocessing.get_context("fork")


def run_below(directory: Path) -> RunDir:
    return RunDir(directory / ROOT, RUN)


@functools.lru_cache(maxsize=1024)
def content(name: str, label: str, rank: int, step: int) -> bytes:
    """The bytes of a tensor. Weights depend on the step alone, and are every rank's."""
    of = {
        "weights": f"{step}", "own": f"{step} {rank}", "author": f"{step} {rank} {label}",
        "frozen": "", "own frozen": f"{rank}",
    }  # fmt: skip
    return blake3(f"{name} {of[name]}".encode()).digest(SIZES[name])


def capture(entry: AttemptEntry, rank: int, step: int, end: bool, after: int) -> Capture:
    weights = protocol.tensor(content("weights", entry.label, rank, step))
    mine = {name: protocol.tensor(content(name, entry.label, rank, step)) for name in SIZES}
    taken = protocol.capture(RUN, entry, rank, WORLD, step, end=end, after=after)
    return taken._replace(tensors={**mine, "weights": weights, "tied": weights})


def acknowledge(*words: object) -> None:
    fd = os.open(os.environ["CRASH_STATES_ACK"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, " ".join(map(str, words)).encode() + b"\n")
    os.close(fd)


class Rank:
    """One rank of one attempt, in a process of its own."""

    def __init__(self, run: RunDir, entry: AttemptEntry, rank: int, pipe: Connection) -> None:
        self.run, self.entry, self.rank, self.pipe = run, entry, rank, pipe
        base = entry.plan.base
        self.verified = {base.manifest} if base else set()
        self.past = Past(snapshot.load_manifest(run, base).parts[rank] if base else None)
        self.voted = (0, False)
        self.committed_lsn = 0
        self.voted_lsn = 0
        files.make_directory(run.meeting(entry.number, entry.nonce))
        self.journal = protocol.open_stream(run, entry, rank, WORLD)
        self.follower = checkpoints.Follower(self.journal.path, self.journal.stream)
        self.journal.append(ev.Resumed(step=base.step if base else 0))
        self.sync()

    def sync(self) -> None:
        self.durable(self.journal.sync())

    def durable(self, head: Cursor) -> None:
        acknowledge("event", self.entry.label, f"rank-{self.rank}", head.lsn, head.chain.hex())

    def train(self, step: int) -> None:
        """Two events in one group, which survives this process and perhaps not the machine."""
        self.journal.append(protocol.completed(step))
        lsn = self.journal.append(ev.ScalarsArrived(step=step, scalars={"loss": 1.0 / step}))
        while self.journal.committed < lsn:
            time.sleep(0.0002)

    def vote(self, step: int, end: bool = False, root: Path | None = None) -> bytes:
        where = self.run._replace(root=root) if root else self.run
        taken = capture(self.entry, self.rank, step, end, self.committed_lsn)
        writing = PACED if self.entry.number == 2 else shards.AT_ONCE
        part = snapshot.vote(where, taken, self.journal, writing, self.past.offers())
        self.durable(Cursor(part.lsn, bytes.fromhex(part.chain)))
        self.voted_lsn = part.lsn
        data = manifest.encode_part(part)
        if root is None:
            self.past.cast(part)
            self.voted = (step, end)
            digest = manifest.digest_of(data)
            acknowledge("vote", self.entry.label, self.rank, step, int(end), digest)
        return data

    def commit(self, step: int, end: bool = False, pause: str = "") -> SnapshotRef | None:
        """None where this attempt is over. `pause` names the failpoint at which to wait."""
        if pause:
            vars(files)["failpoint"] = functools.partial(self._wait_at, pause)
        try:
            entry = snapshot.commit(
                self.run, step=step, end=end, attempt=self.entry.number, nonce=self.entry.nonce,
                world=WORLD, finished=end,
            )  # fmt: skip
        except Fenced:
            return None
        assert entry is not None
        acknowledge("commit", step, entry.snapshot.manifest)
        return entry.snapshot

    def _wait_at(self, pause: str, name: str) -> None:
        if name == pause:
            vars(files)["failpoint"] = failpoint
            self.pipe.send(name)
            self.pipe.recv()

    def keep(self, ref: SnapshotRef) -> None:
        """What the keeper does after a commit: note it, read it back, retire what it replaced."""
        self.journal.append(ev.SnapshotCommitted(step=ref.step, manifest=ref.manifest, end=ref.end))
        snapshot.verify(self.run, ref)
        self.verified.add(ref.manifest)
        self.journal.append(ev.SnapshotVerified(step=ref.step, manifest=ref.manifest, end=ref.end))
        gone = snapshot.retire(
            self.run, attempt=self.entry.number, nonce=self.entry.nonce,
            verified=frozenset(self.verified), keep=KEPT,
        )  # fmt: skip
        for old in gone:
            acknowledge("retired", old.manifest)
        if gone:
            self.journal.append(ev.SnapshotsRetired(names=tuple(old.name for old in gone)))

    def committed(self) -> None:
        self.committed_lsn = self.voted_lsn
        self.past.committed({self.voted})
        self.follower.catch_up(self.journal.durable)

    def finish(self) -> None:
        self.journal.append(ev.RunFinished(step=12))
        self.sync()
        self.journal.close()

    def believe(self, *parts: bytes) -> None:
        """Take these for the votes, whatever lies in the folder."""
        found = [manifest.decode_part(part) for part in parts]
        snapshot.read_votes = lambda *_: found


class Process:
    """The parent's side of a rank."""

    def __init__(self, run: RunDir, entry: AttemptEntry, rank: int) -> None:
        self._pipe, theirs = _fork.Pipe()
        self._process = _fork.Process(target=_serve, args=(run, entry, rank, theirs))
        self._process.start()
        theirs.close()
        self.hear()

    def hear(self) -> Any:
        return self._pipe.recv()

    def tell(self, method: str, *arguments: Any) -> None:
        self._pipe.send((method, arguments))

    def ask(self, method: str, *arguments: Any) -> Any:
        self.tell(method, *arguments)
        return self.hear()

    def end(self) -> None:
        """As a kill would: what was not committed is lost with it."""
        self._pipe.send(None)
        self._process.join()


def _serve(run: RunDir, entry: AttemptEntry, rank: int, pipe: Connection) -> None:
    worker = Rank(run, entry, rank, pipe)
    pipe.send(None)
    while request := pipe.recv():
        method, arguments = request
        pipe.send(getattr(worker, method)(*arguments))
    os._exit(9)


class Attempt:
    """One launch of both ranks."""

    def __init__(self, run: RunDir, pid: int) -> None:
        self.run = run
        self.entry = recovery.begin_attempt(run, protocol.holder(pid)).entry
        acknowledge("attempt", self.entry.number, self.entry.nonce)
        self.ranks: list[Process] = []

    def launch(self) -> None:
        self.ranks = [Process(self.run, self.entry, rank) for rank in range(WORLD)]

    def train(self, step: int, sync: bool = False) -> None:
        for rank in self.ranks:
            rank.ask("train", step)
            if sync:
                rank.ask("sync")

    def save(self, step: int) -> None:
        for rank in self.ranks:
            rank.ask("vote", step)
        self._settle(self.ranks[0].ask("commit", step))

    def save_too_early(self, step: int) -> None:
        with tempfile.TemporaryDirectory() as elsewhere:
            foretold = self.ranks[1].ask("vote", step, False, Path(elsewhere))
        self.ranks[0].ask("believe", self.ranks[0].ask("vote", step), foretold)
        committed = self.ranks[0].ask("commit", step)
        self.ranks[1].ask("vote", step)
        self._settle(committed)

    def _settle(self, committed: SnapshotRef) -> None:
        self.ranks[0].ask("keep", committed)
        for rank in self.ranks:
            rank.ask("committed")

    def end(self) -> None:
        for rank in self.ranks:
            rank.end()


def three_attempts(run: RunDir) -> None:
    first = Attempt(run, 1)
    first.launch()
    for step in range(1, 9):
        first.train(step, sync=step % 4 == 3)
        if step % 2 == 0:
            first.save(step)
    first.train(9)
    first.train(10)
    for rank in first.ranks:
        rank.ask("vote", 10)
    late = first.ranks[0]
    late.ask("commit", 10, False, "sequence.entry.written")
    second = Attempt(run, 2)
    late.tell("go on")
    assert late.hear() is None, "an old attempt has committed"
    second.launch()
    first.end()
    for step in range(9, 13):
        second.train(step)
        if step == 10:
            second.save(step)
    for rank in second.ranks:
        rank.ask("vote", 12, True)
    late = second.ranks[0]
    late.ask("commit", 12, True, "sequence.entry.linked")
    Attempt(run, 3)
    late.tell("go on")
    assert late.hear() is not None
    for rank in second.ranks:
        rank.ask("finish")
    second.end()


def recover(run: RunDir) -> None:
    attempt = Attempt(run, 1)
    attempt.launch()
    attempt.end()


def early_commits(run: RunDir) -> None:
    attempt = Attempt(run, 1)
    attempt.launch()
    for step in (1, 2):
        attempt.train(step)
        attempt.save_too_early(step)
    attempt.end()


_STORIES = {"run": three_attempts, "early-commit": early_commits, "recover": recover}


def main(arguments: list[str]) -> None:
    checkpoints.WORTH_EVENTS = EVENTS_WORTH_KEEPING
    run = run_below(Path.cwd())
    run.create()
    _STORIES[arguments[0]](run)


if __name__ == "__main__":
    main(sys.argv[1:])
