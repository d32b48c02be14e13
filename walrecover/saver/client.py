"""The training process's side of its saver: start it, tell it, hear it, know whether it lives.

Owns the socket and the saver's pidfd. Nothing here waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec

from walrecover.arena.memory import Arena
from walrecover.rundir import RunDir
from walrecover.saver import messages as msg
from walrecover.saver import roll


class Saver:
    """A saver process for the slots of one arena."""

    def __init__(self, assignment: msg.Assignment, arena: Arena) -> None:
        """Start it; `reports` says when it is ready. Raises OSError where no process begins."""
        self.pid: int | None = None
        self._pidfd = -1
        run = RunDir(Path(assignment.root), assignment.run)
        roll.announce(run.meeting(assignment.attempt, assignment.nonce), assignment.rank)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        trainer = os.pidfd_open(os.getpid())
        fds = (theirs.fileno(), arena.fd, trainer)
        try:
            self._parent: subprocess.Popen[bytes] | None = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # a module in the script's folder must not pass for the library's
                    "-m",
                    "walrecover.saver",
                    *map(str, fds),
                    msgspec.json.encode(assignment).decode(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a pipe that it held would not end with the training
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # a signal to the training's group is none to it
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(trainer)
        self._sock = ours
        ours.setblocking(False)
        _living.add(self)

    def fileno(self) -> int:
        """Readable when there are reports."""
        return self._sock.fileno()

    @property
    def lives(self) -> bool:
        """Whether it may still touch a slot: until its pidfd says that it was reaped, or that it
        never came to be."""
        if self._pidfd >= 0:
            return not _is_readable(self._pidfd)
        return not self._closed

    @property
    def _closed(self) -> bool:
        """Whether the other end of the socket is gone, and with it every process that had it."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def tell(self, order: msg.Order) -> None:
        """Never waits. What is lost with a dead saver stands in the arena."""
        with contextlib.suppress(OSError):
            self._sock.send(msg.encode(order))

    def reports(self) -> list[msg.Report]:
        """What it has said since the last time."""
        found: list[msg.Report] = []
        self._reap()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, msg.LARGEST_BYTES, 1)
            except ConnectionResetError:
                continue  # it ended with orders unread, which says so ahead of its last reports
            except OSError:  # nothing there, or it is gone
                return found
            if not data:
                return found
            report = msg.decode_report(data)
            if isinstance(report, msg.Ready):
                self.pid = report.pid
                self._pidfd = fds.pop(0) if fds else -1
            for fd in fds:
                os.close(fd)
            found.append(report)

    def wait(self, seconds: float, until: Callable[[msg.Report], bool]) -> list[msg.Report]:
        """Reports, until one is what is waited for, it is gone, or so many seconds have passed."""
        deadline = time.monotonic() + seconds
        found: list[msg.Report] = []
        while True:
            lives = self.lives
            found += (fresh := self.reports())
            left = deadline - time.monotonic()
            if any(until(report) for report in fresh) or not lives or left <= 0:
                return found
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            if self._pidfd >= 0:
                poll.register(self._pidfd, select.POLLIN)
            poll.poll(left * 1000)

    def _reap(self) -> None:
        """The process that started it and ended at once."""
        if self._parent is not None and self._parent.poll() is not None:
            self._parent = None

    def close(self, *, heirs: bool = False, fails: bool = False) -> None:
        """Let go of it: it finishes what there is, and ends. `heirs`: it is to save what was only
        kept in memory, too, once this process is gone. `fails`: the script ends in failure."""
        if not heirs:
            self.tell(msg.End(fails))
        if self._parent is not None:
            self._parent.wait()
            self._parent = None
        self._let_go()

    def _let_go(self) -> None:
        self._sock.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


_living: weakref.WeakSet[Saver] = weakref.WeakSet()


def _forget_in_child() -> None:
    for saver in list(_living):
        saver._let_go()
    _living.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
