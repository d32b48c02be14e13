"""The saver's process: its priority, its loop and its end.

It ends when it was told to or its training process has ended, and nothing is left to save; and at
once when a newer attempt took the run over.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import time
from pathlib import Path

import msgspec

from walrecover.arena.layout import Header
from walrecover.arena.memory import Arena
from walrecover.commits import Attempt, Commits, Key
from walrecover.entries import CommitEntry
from walrecover.errors import Fenced, WalrecoverError
from walrecover.events import AttemptBegun
from walrecover.journal.notes import Notes
from walrecover.rundir import RunDir
from walrecover.saver import messages as msg
from walrecover.saver import offering, roll
from walrecover.saver.estate import Estate
from walrecover.saver.pace import Breath, Standing
from walrecover.saver.saving import Saving
from walrecover.saver.trainer import Trainer

VOTES_POLL_SECONDS = 0.01
MOST_UNREAD = 4
"""Commits that votes may go ahead of: where captures come without a pause, nothing would ever be
read back, and so retired, and the disk would fill up."""

LAST_VOTES_SECONDS = 60.0
"""How long rank 0's saver waits for the other ranks' votes once its training process is gone."""


class _Line:
    """The socket to the training process, which may be gone: then nobody listens."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        self.ended = self.fails = self.hurried = self._closed = False

    def tell(self, report: msg.Report) -> None:
        with contextlib.suppress(OSError):  # gone, or it does not read: nothing depends on it
            self._sock.send(msg.encode(report))

    def greet(self) -> None:
        pidfd = os.pidfd_open(os.getpid())
        try:
            with contextlib.suppress(OSError):
                socket.send_fds(self._sock, [msg.encode(msg.Ready(os.getpid()))], [pidfd])
        finally:
            os.close(pidfd)

    def listen(self) -> None:
        """Take what orders have come."""
        while True:
            try:
                data = self._sock.recv(msg.LARGEST_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # closed with reports unread, which says so ahead of the last orders
            except OSError:
                data = b""
            if not data:
                # Its process is ending, which closes sockets a moment before the pidfd tells of it:
                # until then, what was only kept in memory is not looked at.
                self._closed = True
                return
            order = msg.decode_order(data)
            if isinstance(order, msg.Hurry):
                self.hurried = True
            elif isinstance(order, msg.End):
                self.ended, self.fails = True, order.fails

    def wait(self, pidfd: int, seconds: float | None) -> None:
        """Until an order comes, the training process ends, or so many seconds have passed."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not self._closed:
            poll.register(self._sock, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)


class _Process:
    def __init__(self, given: msg.Assignment, line: _Line, arena: Arena, trainer: Trainer) -> None:
        self._given, self._line, self._trainer = given, line, trainer
        run = RunDir(Path(given.root), given.run, Path(given.journal) if given.journal else None)
        self.run, self._attempt = run, Attempt(given.attempt, given.nonce, given.world)
        writer = _free_name(run, given)
        self.notes = Notes(
            run.stream(given.attempt, given.nonce, writer),
            AttemptBegun(run=given.run, attempt=given.attempt, nonce=given.nonce, writer=writer),
            lambda why: line.tell(msg.Said(f"what the saver does cannot be journaled: {why}")),
        )
        self._breath = Breath(trainer.is_busy, line.listen)
        self._standing = Standing()
        self._saving = Saving(
            run, self._attempt, arena.slots, trainer, self._breathe, self.notes.note, line.tell
        )
        self._commits: Commits | None = None
        if given.rank == 0:
            self._commits = Commits(
                run,
                self._attempt,
                verified=frozenset(given.verified),
                retention=given.retention,
                note=self.notes.note,
                say=lambda text: line.tell(msg.Said(text)),
                told=self._told,
            )
            self._commits.resume()
        self._last_since: float | None = None
        self._meeting = run.meeting(given.attempt, given.nonce)
        roll.enrol(self._meeting, given.rank)
        self._estate = Estate(self._meeting, given.rank, given.world)

    def _breathe(self, nbytes: int) -> bool:
        self._breath.hurried = self._line.hurried
        paused = self._breath(nbytes)
        self._stand()
        return paused

    def _stand(self) -> None:
        self._standing.place(behind=self._trainer.lives and not self._line.hurried)

    def _told(self, key: Key, what: CommitEntry | str) -> None:
        if isinstance(what, str):
            self._line.tell(msg.Abandoned(key.step, key.end, what))
        else:
            self._line.tell(msg.Committed(key.step, key.end, what.snapshot.manifest))

    def serve(self) -> None:
        """Work until nothing is left and nobody will bring more. Raises Fenced."""
        self._stand()
        if self._commits is not None:
            # What an earlier saver was about to commit, before a newer capture overtakes it.
            self._keep_on(self._commits)
        while True:
            self._line.listen()
            self._stand()
            # Asked before the slots are looked at: what it completed is all there will be.
            last = not self._trainer.lives or self._line.ended
            worked = self._work()
            if worked or (last and self._inherits()):
                continue
            waits = self._commits is not None and bool(self._commits.waiting)
            if last and (not waits or self._no_votes_come()):
                return
            if not waits:
                self._line.hurried = False
                self._stand()
                self._line.tell(msg.Idle())
            self._wait(VOTES_POLL_SECONDS if waits or last else None)

    def _wait(self, seconds: float | None) -> None:
        if self._trainer.lives:
            self._line.wait(self._trainer.pidfd, seconds)
        else:  # its pidfd would end every wait at once
            time.sleep(VOTES_POLL_SECONDS)

    def leaves(self) -> tuple[int, Header] | None:
        """A slot that the next attempt may be restored from, once all is done: of a training that
        has failed, where a supervisor starts it again."""
        if not self._given.supervisor or (self._line.ended and not self._line.fails):
            return None
        return self._saving.voted()

    def _inherits(self) -> bool:
        """Once all ranks are gone: save the newest step that all of them have kept in memory. False
        where there is nothing to do or to wait for."""
        if self._line.ended:
            self._estate.renounce()
        if self._trainer.lives or self._estate.settled:
            return False
        self._saving.heir_of(self._estate.settle(self._saving.heritage))
        if not self._estate.settled:
            self._wait(None)
        return True

    def _work(self) -> bool:
        """One thing that there is to do; False where there is nothing."""
        saved = self._saving.save_next()
        worked = saved is not None or bool(self._saving.pending())
        if self._commits is None:
            return worked
        if saved is not None:
            self._commits.expect(saved[0], finished=saved[1])
        return self._keep_on(self._commits) or worked

    def _keep_on(self, commits: Commits) -> bool:
        try:
            return self._keep(commits)
        except Fenced:
            raise
        except (WalrecoverError, OSError) as error:  # tried again, but not at once
            self._line.tell(msg.Said(f"keeping snapshots: {error}"))
            return False

    def _keep(self, commits: Commits) -> bool:
        before = commits.committed
        commits.settle()
        if self._saving.pending() and commits.unverified < MOST_UNREAD:
            return True  # a vote goes before reading back
        if commits.unverified:
            commits.read_back()
            return True
        return commits.committed != before

    def _no_votes_come(self) -> bool:
        now = time.monotonic()
        if self._last_since is None:
            self._last_since = now
        waited = now - self._last_since
        others = range(1, self._attempt.world)
        if waited < LAST_VOTES_SECONDS and not all(
            roll.is_missing(self._meeting, rank, waited) or self._estate.has_voted(rank)
            for rank in others
        ):
            return False
        assert self._commits is not None
        if self._keep_on(self._commits):
            return False  # a vote came just before that was said
        self._commits.give_up("not all ranks have voted for it, and the training has ended")
        return True


def _free_name(run: RunDir, given: msg.Assignment) -> str:
    """Of a stream: those of savers before this one are never reopened."""
    for number in itertools.count(1):
        name = f"saver-{given.rank}" + (f"-{number}" if number > 1 else "")
        if not run.stream(given.attempt, given.nonce, name).exists():
            return name
    raise AssertionError


def _yield_the_disk() -> None:
    """From here on what is read and written here comes after the training's."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def main(sock: int, memory: int, pidfd: int, assignment: str) -> int:
    """Descriptors of a socket to the training process, of the arena's memory, and a pidfd of the
    training process."""
    given = msgspec.json.decode(assignment, type=msg.Assignment)
    _yield_the_disk()
    line = _Line(socket.socket(fileno=sock))
    last = msg.Ended("")
    trainer = Trainer(pidfd)
    process = left = None
    try:
        arena = Arena.attach(memory)
        process = _Process(given, line, arena, trainer)
        line.greet()
        process.serve()
        left = process.leaves()
    except Fenced as error:
        last = msg.Ended(str(error), fenced=True)
    except Exception as error:  # there is nobody else to tell
        last = msg.Ended(f"{type(error).__name__}: {error}")
    finally:
        if process is not None:
            process.notes.close()
        line.tell(last)
    if process is not None and left is not None:
        offering.offer(process.run, given, arena, trainer, *left)
    return 0 if not last.reason else 1
