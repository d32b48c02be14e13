"""Which savers live.

Owns naming them from outside: by their command line for whoever waits for those of a run, and by a
file beside the attempt's other files for rank 0's saver, which does not wait for votes of savers
that are gone. The file tells, it is never state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from walrecover.entries import Holder
from walrecover.files import make_directory
from walrecover.processes import identity, is_alive
from walrecover.rundir import RunDir
from walrecover.saver.messages import Assignment

MODULE = "walrecover.saver"

STRANGER_SECONDS = 5.0
"""A rank whose saver was not announced after so long has none: it died before its first
boundary."""


def of_run(run: RunDir, pids: Callable[[], Iterable[int]]) -> set[int]:
    """Those of these processes that are savers of the run, from their first instruction on.

    A saver leaves the process that started it by a fork: who ended during the look may have been
    that process, and then its child is in the next one.
    """
    found: set[int] = set()
    for _ in range(2):
        lines = {pid: _command_line(pid) for pid in pids()}
        found |= {pid for pid, words in lines.items() if _assignment(run, words)}
        if all(lines.values()):
            break
    return found


def bereaved(run: RunDir, pids: Callable[[], Iterable[int]]) -> set[int]:
    """Those whose training process has ended, or is this one, which begins anew: they finish what
    there is."""
    found = set()
    for pid in of_run(run, pids):
        given = assignment(run, pid)
        if given and (given.trainer == identity() or is_alive(given.trainer) is False):
            found.add(pid)
    return found


def _command_line(pid: int) -> list[bytes]:
    """Empty for what has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def assignment(run: RunDir, pid: int) -> Assignment | None:
    """What this process was started with, if it is a saver of the run."""
    return _assignment(run, _command_line(pid))


def _assignment(run: RunDir, words: list[bytes]) -> Assignment | None:
    if MODULE.encode() not in words:
        return None
    try:
        given = msgspec.json.decode(words[-1], type=Assignment)
    except msgspec.DecodeError:
        return None
    return given if (given.root, given.run) == (str(run.root), run.name) else None


def announce(meeting: Path, rank: int) -> None:
    """A saver for the rank is being started: it comes, however busy the machine is. By its training
    process, which waits for no disk."""
    with contextlib.suppress(OSError):
        meeting.mkdir(mode=0o700, exist_ok=True)
        _path(meeting, rank).write_bytes(b"")


def enrol(meeting: Path, rank: int) -> None:
    """This process is the rank's saver. Where that cannot be written, its votes are waited for."""
    with contextlib.suppress(OSError):
        make_directory(meeting)
        _path(meeting, rank).write_bytes(msgspec.json.encode(identity()))


def is_missing(meeting: Path, rank: int, waited: float) -> bool:
    """Whether nothing will come of the rank's saver: it has ended, or none was announced in so many
    seconds."""
    never = waited > STRANGER_SECONDS and not _path(meeting, rank).exists()
    return never or is_gone(meeting, rank)


def is_gone(meeting: Path, rank: int) -> bool:
    """Whether the rank's saver was there, and has ended; or nobody will find anybody here, for the
    attempt's folder was taken away."""
    if not meeting.exists():
        return True
    try:
        holder = msgspec.json.decode(_path(meeting, rank).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return False
    return is_alive(holder) is False


def _path(meeting: Path, rank: int) -> Path:
    return meeting / f"rank-{rank:05d}.saver"
