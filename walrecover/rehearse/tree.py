"""The command's processes: who is who among them, and the death of one.

Owns naming a process and killing that very one. Whom to kill, and when, is `kill`'s affair.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from walrecover.journal.inspector import EXAMINES
from walrecover.processes import Seen, descendants, started_at
from walrecover.promotion import MARK

PATIENCE_SECONDS = 20.0
_PF_EXITING = 0x4
_STATE, _PARENT, _FLAGS = 0, 1, 6


class Victim(NamedTuple):
    """`rank` None: another process than a rank's. `label`: what people read."""

    process: Seen
    label: str
    rank: int | None = None


def below(pid: int, ancestor: int) -> Seen | None:
    """That process, if it lives and descends from the ancestor."""
    started = started_at(pid)
    number = pid
    while number > 1:
        fields = _stat(number)
        if not fields:
            return None
        number = int(fields[_PARENT])
        if number == ancestor:
            return None if started is None else Seen(pid, started)
    return None


def others(supervisor: int, ranks: Collection[int]) -> list[Victim]:
    """The processes below the supervisor that are no rank's, by pid. What the supervisor keeps
    for a restart is none, nor is a saver: no attempt ends for it."""
    return [
        Victim(process, _label(process.pid, ranks))
        for process in sorted(descendants(supervisor))
        if process.pid not in ranks and not _is_for_a_restart(process.pid, supervisor)
    ]


def _is_for_a_restart(pid: int, supervisor: int) -> bool:
    """A standby, a saver, or what examines a journal, for the supervisor or for a rank's proof. A
    rank's children have a standby's environment too, if it was one before."""
    fields = _stat(pid)
    environ = _read(pid, "environ")
    if EXAMINES in environ or "walrecover.saver" in _read(pid, "cmdline").split("\0"):
        return True
    return bool(fields) and int(fields[_PARENT]) == supervisor and MARK in environ


def _label(pid: int, ranks: Collection[int]) -> str:
    words = _read(pid, "cmdline").split("\0")
    parent = int((_stat(pid) or ["", "0"])[_PARENT])
    if _read(pid, "comm").startswith("pt_data"):
        return "a DataLoader worker"
    if parent in ranks and words == _read(parent, "cmdline").split("\0"):
        return "a process that a rank has forked"
    names = [os.path.basename(word) for word in words[:2] if word and not word.startswith("-")]
    return names[-1] if names else f"pid {pid}"


def kill(process: Seen) -> bool:
    """SIGKILL that very process and wait for its death; False where it did not die of that."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        fields = _stat(process.pid)
        if started_at(process.pid) != process.started or int(fields[_FLAGS]) & _PF_EXITING:
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(PATIENCE_SECONDS * 1000))
    except (ProcessLookupError, IndexError):
        return False
    finally:
        os.close(fd)


def _stat(pid: int) -> list[str]:
    """The fields of a process behind its name; none where it is gone."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
