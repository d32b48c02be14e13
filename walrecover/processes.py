"""Processes: who we are, who still lives, what descends from us, and how all of that is ended.

Owns reading the process table and ending processes; knows nothing of runs, attempts or the
signals that people send. Linux only (5.4 or newer: pidfds).

A process is named by boot, pid namespace, pid and start time, so that a pid that was given out
again never passes for its former owner. The start time is in ticks since boot, from /proc:
psutil's moves when the clock is set. psutil reads the table, and is imported only for that.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from walrecover.entries import Holder

PATIENCE_SECONDS = 10.0
_FAREWELL_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


class Seen(NamedTuple):
    """A process as it stood in the table. `started` in seconds since boot."""

    pid: int
    started: float


def started_at(pid: int) -> float | None:
    """Seconds from boot to the start of this process; None where it has ended or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything
    if state in "ZXx" and int(fields[16]) <= 1:  # with more, only its first thread has ended
        return None
    return int(fields[18]) / _TICKS


def identity() -> Holder:
    """This process, named so that another one can tell whether it still lives."""
    pid = os.getpid()
    return Holder(host=os.uname().nodename, boot=_boot(), pid=pid, started=started_at(pid) or 0.0)


def _boot() -> str:
    """This boot of this kernel, and the pid namespace of it in which a pid has a meaning."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def is_alive(holder: Holder) -> bool | None:
    """Whether that very process lives; None where it cannot be seen from here."""
    if holder.host != os.uname().nodename or holder.boot != _boot():
        return None
    try:
        started = started_at(holder.pid)
        if started is None:
            os.kill(holder.pid, 0)  # /proc may hide the processes of others (hidepid)
    except PermissionError:
        return None
    except (ProcessLookupError, OverflowError):
        return False
    return started == holder.started


@functools.cache
def _prctl() -> Callable[[int, int], None]:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(option: int, value: int) -> None:
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    return call


def become_subreaper() -> None:
    """Have descendants that lose their parent become our children, so that they are found.

    Also loads what `die_with_parent` needs: between fork and exec nothing must be imported.
    """
    _prctl()(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when the *thread* that forked it ends.

    `parent` is the pid that forked us: where it is gone already, no signal would ever come.
    """
    _prctl()(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def watch_supervisor(
    pid: int, started: float, on_death: Callable[[], object] | None = None
) -> bool:
    """End this process when its supervisor ends; False at once where that is gone already.

    A pidfd stands for the pipe that closes: launchers such as torchrun pass no descriptors on,
    and a pidfd needs only the number. A daemon thread waits on it; when it fires, `on_death` gets
    a few seconds, then this process ends by SIGKILL.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    # Looked at after opening: from here on the number cannot pass to another process unnoticed.
    if started_at(pid) != started:
        os.close(fd)
        return False

    def die_after() -> None:
        _poll(fd, seconds=None)
        if on_death is not None:
            # In a thread of its own: a farewell that hangs must not keep the process.
            farewell = threading.Thread(target=on_death, daemon=True)
            farewell.start()
            farewell.join(_FAREWELL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die_after, name="walrecover-watch", daemon=True).start()
    return True


def prepare() -> None:
    """Import now what the end of an attempt needs, so that a restart does not wait for it."""
    import psutil  # noqa: F401


def children() -> set[int]:
    """Our children, zombies included, by the kernel's own list.

    Whoever becomes a child while it is read has a parent that is still in it: a subreaper gets the
    orphans of a process no later than its end is to be reaped. So an empty list proves that nothing
    is left; one that children end during the reading may lack others, and is read again. So is one
    during which a thread of ours ended: its children fell to another, which may have been read.
    """
    found: set[int] = set()
    readings = 0
    while readings < 2:
        try:
            for tasks in Path("/proc/self/task").iterdir():
                found.update(map(int, (tasks / "children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue
        readings += 1
    return found


def descendants(pid: int, without: Iterable[int] = ()) -> list[Seen]:
    """All living processes below `pid`, in whatever session or group; zombies are left out, and so
    are the children `without`, with all below them.

    Below a subreaper that includes orphans. One that loses its parent during the look can be
    missed: an empty answer alone does not prove that nothing is left.
    """
    import psutil

    try:
        below = {process.pid for process in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return []
    for child in without:
        below -= {child, *(process.pid for process in descendants(child))}
    found = ((number, started_at(number)) for number in sorted(below))
    return [Seen(number, started) for number, started in found if started is not None]


OnEnd = Callable[[int, int, int], object]
"""Pid, wait status, and the bytes that the largest process of its tree held at most: of those that
it waited for itself, the others are handed over on their own."""


def reap(on_end: OnEnd) -> bool:
    """Hand every child that has ended to `on_end`; is any child left?"""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        on_end(pid, status, usage.ru_maxrss << 10)


class Hurry(Protocol):
    """What can cut a grace period short: asked whenever its descriptor becomes readable."""

    def fileno(self) -> int: ...
    def __call__(self) -> bool: ...


def await_ends(
    pids: Callable[[], Collection[int]],
    seconds: float,
    on_end: OnEnd,
    hurry: Hurry,
    look: float = 1.0,
) -> bool:
    """Wait until none of these children is left, asked anew every `look` seconds; False where that
    took too long, or `hurry` cut it short."""
    deadline = time.monotonic() + seconds
    while reap(on_end) and (left := pids()):
        seen = [Seen(pid, at) for pid in left if (at := started_at(pid)) is not None]
        if _await_all(seen, min(deadline, time.monotonic() + look), hurry):
            return False
        if time.monotonic() >= deadline:
            return False
    return True


def kill_tree(
    grace: float,
    on_end: OnEnd,
    hurry: Hurry | None = None,
    kept: Callable[[], Collection[int]] = frozenset,
) -> list[Seen]:
    """End all that descends from this process: TERM, `grace` seconds, then KILL until none is left.

    For a subreaper that waits for its children nowhere else. `kept`: children that are left alone,
    with all below them; asked each time, for they may come to be meanwhile. Returns what outlived
    SIGKILL by PATIENCE_SECONDS (processes in an uninterruptible wait, or of another user).
    """
    told: set[Seen] = set()
    end_of_grace = time.monotonic() + grace
    end_of_patience = 0.0
    while True:
        # Only the kernel's word counts: whatever descends from a subreaper hangs below a child.
        if not reap(on_end):
            return []
        spared = {*kept()}
        if spared and children() <= spared:
            return []
        below = descendants(os.getpid(), without=spared)
        if not below:
            time.sleep(0.005)  # between two parents, or about to become a zombie
        if time.monotonic() < end_of_grace:
            fresh = [process for process in below if process not in told]
            _send(fresh, signal.SIGTERM, signal.SIGCONT)  # one that is stopped could not react
            told.update(fresh)
            if _await_all(below, end_of_grace, hurry):
                end_of_grace = 0.0
            continue
        end_of_patience = end_of_patience or time.monotonic() + PATIENCE_SECONDS
        if time.monotonic() > end_of_patience:
            return below
        _send(below, signal.SIGKILL)
        _await_all(below, end_of_patience, None)


def _send(processes: list[Seen], *numbers: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError), _pidfd(process) as fd:
            for number in numbers:
                signal.pidfd_send_signal(fd, number)


def _await_all(processes: list[Seen], deadline: float, hurry: Hurry | None) -> bool:
    """Wait until all have ended or the deadline has come; True where `hurry` cut it short.

    One descriptor at a time: the deadline is common, and a tree may outnumber our descriptors.
    """
    more = () if hurry is None else (hurry.fileno(),)
    for process in processes:
        with contextlib.suppress(ProcessLookupError), _pidfd(process) as fd:
            while (seconds := deadline - time.monotonic()) > 0:
                ready = _poll(fd, *more, seconds=seconds)
                if hurry is not None and hurry.fileno() in ready and hurry():
                    return True
                if fd in ready:
                    break
    return False


@contextlib.contextmanager
def _pidfd(process: Seen) -> Iterator[int]:
    """A pidfd of that very process. Raises ProcessLookupError where it has ended."""
    fd = os.pidfd_open(process.pid)
    try:
        if started_at(process.pid) != process.started:
            raise ProcessLookupError(process.pid)
        yield fd
    finally:
        os.close(fd)


def _poll(*descriptors: int, seconds: float | None) -> list[int]:
    """Those that become readable within so many seconds (None: however long it takes)."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [ready for ready, _ in poll.poll(None if seconds is None else seconds * 1000 + 1)]
