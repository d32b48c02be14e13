"""The standby's side of a warm restart: what a process does before the script is its to run.

Owns low priority, the imports ahead of time, the wait for the supervisor's word and the last look
before it takes over. Runs in the user's interpreter before the user's code (`supervisor/hook`), so
it imports nothing but what every interpreter has already, and leaves nothing behind. Must not
decide when a standby is wanted: that is `supervisor.standby`'s.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

MARK = "WALRECOVER_PROMOTION"
"""Set by the supervisor for a standby: its kind and two descriptors, the channel, and a file of two
lines: modules to import, and variables that the script sets."""

BUSY_NAME, WAITING_NAME = b"walrecover-warm", b"walrecover-wait"
LOWEST = 19
"""SCHED_IDLE would never get anywhere beside a training that takes all cores."""

WORK_SECONDS, REST_SECONDS = 0.01, 0.03
MESSAGE_BYTES = 1 << 16
_ENDED, _NOT_PROMOTED = 0, 1

Stamp = dict[str, tuple[int, int]]


class _Manner(NamedTuple):
    """How the process was before it stepped back: priority, name, readiness to be killed."""

    nice: int
    name: bytes
    killable: bytes
    paced: bool


class _Standby(NamedTuple):
    """A process that waits. `output`: what the imports printed, by the descriptor it is for."""

    pid: int
    channel: int
    manner: _Manner


_waiting: list[_Standby] = []


def stand_by() -> None:
    """Before the script: import ahead and wait; or, parked, let it run on to `arrive`."""
    kind, channel, names, set_by_script = _read_mark(os.environ.pop(MARK))
    standby = _Standby(os.getpid(), channel, _step_back(pace=kind == "imported"))
    if kind == "parked":
        _waiting.append(standby)
        return
    output = _Output()
    try:
        problem = _import_ahead(names, set_by_script)
    except BaseException as error:
        problem = f"importing ahead raised {type(error).__name__}: {error}"
    _wait(standby, problem)
    output.replay()


def is_parked() -> bool:
    """Whether `arrive` will wait."""
    return bool(_waiting)


def arrive() -> None:
    """In `attach`: a parked standby waits here. Ends a standby that passed its hook by."""
    if MARK in os.environ:
        os._exit(_NOT_PROMOTED)
    while _waiting:
        standby = _waiting.pop()
        if standby.pid == os.getpid():
            _wait(standby, None)


# -- importing -----------------------------------------------------------------------------------


def _import_ahead(names: Sequence[str], set_by_script: Iterable[str]) -> str | None:
    """Import these in their order; what speaks against going on with them."""
    before, environ, allowed = set(sys.modules), dict(os.environ), set(names)
    for name in names:
        if name not in sys.modules:
            __import__(name)
    for name in set_by_script:
        if os.environ.get(name) == environ.get(name):
            return f"the script sets {name} itself, and what it imports may read it"
    for name, module in list(sys.modules.items()):
        if name not in before and name not in allowed and is_real(name, module):
            return f"importing ahead brings in {name}, which the script did not have from there"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "what the script imports initialises CUDA"
    return None


def is_real(name: str, module: Any) -> bool:
    """Whether it was loaded under its own name, from a file: not an alias, not made by code."""
    try:
        spec = module.__spec__
        return spec.name == name and bool(spec.has_location)
    except Exception:  # whatever stands in sys.modules may raise whatever it likes
        return False


def _stamp() -> Stamp:
    """The files of all modules, as they are now."""
    found: Stamp = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(path, str) and path not in found:
            found[path] = _stamp_of(path)
    return found


def _stamp_of(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


# -- waiting -------------------------------------------------------------------------------------


def _read_mark(mark: str) -> tuple[str, int, list[str], list[str]]:
    kind, channel, listed = mark.split(":")
    os.set_inheritable(int(channel), False)
    with open(int(listed), encoding="utf-8") as file:
        file.seek(0)  # where whoever wrote it stands
        names, environment = file.read().split("\n")
    return kind, int(channel), names.split(), environment.split()


def _wait(standby: _Standby, problem: str | None) -> None:
    """Wait for the supervisor's word and follow it; does not return where it never comes."""
    stamp = _stamp()
    _step_forward(standby.manner)
    channel = standby.channel
    try:
        if problem is not None:
            os.write(channel, f"refused {problem}".encode(errors="replace")[:MESSAGE_BYTES])
            os._exit(_NOT_PROMOTED)
        os.write(channel, f"ready {_resident()}".encode())
        _show(standby.manner._replace(name=WAITING_NAME, killable=b"1000"))
        word = os.read(channel, MESSAGE_BYTES)
        if not word:
            os._exit(_ENDED)
        changed = [path for path, was in stamp.items() if _stamp_of(path) != was]
        if changed:
            os.write(channel, f"refused {changed[0]} has changed since".encode(errors="replace"))
            os._exit(_NOT_PROMOTED)
        for setting in word.decode(errors="surrogateescape").split("\0"):
            name, _, value = setting.partition("=")
            os.environ[name] = value
        _show(standby.manner)
        os.write(channel, b"taken")
    except (BrokenPipeError, ConnectionError, KeyboardInterrupt):
        os._exit(_ENDED)
    os.close(channel)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Output:
    """Keeps what is printed, unless a terminal is to show it, until `replay`."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, int]] = []
        for fd in (1, 2):
            try:
                if os.isatty(fd):
                    continue
                real = os.dup(fd)
            except OSError:
                continue
            memory = os.memfd_create("walrecover-output")
            os.dup2(memory, fd)
            self._kept.append((fd, real, memory))

    def replay(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for fd, real, memory in self._kept:
            os.dup2(real, fd)
            os.close(real)
            for part in _read_whole(memory):
                while part:
                    part = part[os.write(fd, part) :]
            os.close(memory)


def _read_whole(fd: int) -> Iterator[bytes]:
    os.lseek(fd, 0, os.SEEK_SET)
    while part := os.read(fd, MESSAGE_BYTES):
        yield part


# -- priority ------------------------------------------------------------------------------------


def _step_back(*, pace: bool) -> _Manner:
    """Work at the lowest priority where that can be undone; else in small portions, if `pace`.

    And be the first that the kernel ends when memory runs out.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    lowers = _can_come_back(nice)
    manner = _Manner(nice, _proc("comm"), _proc("oom_score_adj"), pace and not lowers)
    _show(manner._replace(name=BUSY_NAME, killable=b"1000"))
    if lowers:
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    elif pace:
        _pace(WORK_SECONDS)
    return manner


def _step_forward(manner: _Manner) -> None:
    """Undo the priority, in every thread that was started meanwhile."""
    if manner.paced:
        _pace(0.0)
    for thread in map(int, os.listdir("/proc/self/task")):
        try:
            if os.getpriority(os.PRIO_PROCESS, thread) == LOWEST:
                os.setpriority(os.PRIO_PROCESS, thread, manner.nice)
        except ProcessLookupError:
            continue


def _can_come_back(nice: int) -> bool:
    """Whether this user may raise the priority again, tried where failing does no harm."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _pace(seconds: float) -> None:
    """Rest after every so many seconds of CPU time; 0: no more."""
    import signal

    if seconds:
        signal.signal(signal.SIGPROF, lambda number, frame: time.sleep(REST_SECONDS))
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    else:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _show(manner: _Manner) -> None:
    """The name in `ps`, and how soon the kernel ends us."""
    for name, value in (("comm", manner.name), ("oom_score_adj", manner.killable)):
        try:
            with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                file.write(value)
        except OSError:
            continue  # /proc is read-only


def _proc(name: str) -> bytes:
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read().strip()
