"""Which descriptor of which process stands for what, and where each process is.

Owns: descriptor tables and working directories through fork, threads, exec and dup. It must not
know the tree below the root: a description holds an inode that the caller gave it, or a path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .calls import AT_FDCWD, Call

CLONES = frozenset({"clone", "clone3", "fork", "vfork"})


@dataclass(slots=True, eq=False)
class Description:
    """An open file description: shared by duplicates, so its offset is too."""

    ino: int | None = None
    path: str = ""
    flags: frozenset[str] = frozenset()
    offset: int = 0
    ack: bool = False
    partial: bytes = b""

    @property
    def appends(self) -> bool:
        return "O_APPEND" in self.flags

    @property
    def syncs(self) -> str:
        """Why each write is durable when it returns; empty if it is not."""
        return next((flag for flag in ("O_SYNC", "O_DSYNC") if flag in self.flags), "")


@dataclass(slots=True)
class _Descriptor:
    description: Description
    close_on_exec: bool


@dataclass(slots=True)
class _Place:
    cwd: str


@dataclass(slots=True)
class Process:
    place: _Place
    fds: dict[int, _Descriptor] = field(default_factory=dict)

    def get(self, fd: int) -> Description | None:
        held = self.fds.get(fd)
        return held.description if held else None

    def open(self, fd: int, description: Description) -> None:
        self.fds[fd] = _Descriptor(description, "O_CLOEXEC" in description.flags)


class Processes:
    """Every process and thread of the recording, born from the first."""

    def __init__(self, calls: Iterable[Call], cwd: str) -> None:
        self._cwd = cwd
        self._known: dict[int, Process] = {}
        self._births: dict[int, Call] = {}
        for call in calls:
            if call.name in CLONES and call.result > 0:
                self._births[call.result] = call

    def of(self, pid: int) -> Process:
        """A child may speak before its parent's clone has returned: births are known ahead."""
        if pid not in self._known:
            birth = self._births.get(pid)
            self._known[pid] = (
                self._child(self.of(birth.pid), birth) if birth else Process(_Place(self._cwd))
            )
        return self._known[pid]

    def _child(self, parent: Process, birth: Call) -> Process:
        flags = {part for arg in birth.args for part in _flags(arg)}
        place = parent.place if "CLONE_FS" in flags else _Place(parent.place.cwd)
        if "CLONE_FILES" in flags:
            return Process(place, parent.fds)
        copied = {
            fd: _Descriptor(held.description, held.close_on_exec) for fd, held in parent.fds.items()
        }
        return Process(place, copied)

    def follow(self, call: Call) -> None:
        """Applies a call that moves descriptors and touches no file."""
        process = self.of(call.pid)
        if call.name in CLONES:
            if call.result > 0:
                self.of(call.result)
        elif call.name == "execve":
            kept = {fd: held for fd, held in process.fds.items() if not held.close_on_exec}
            self._known[call.pid] = Process(_Place(process.place.cwd), kept)
        elif call.name == "close":
            process.fds.pop(call.fd(0), None)
        elif call.name == "close_range":
            self._close_range(process, call)
        elif call.name in ("dup", "dup2", "dup3"):
            self._duplicate(process, call, "O_CLOEXEC" in call.flags(2))
        elif call.name == "fcntl":
            self._fcntl(process, call)
        elif call.name == "ioctl":
            self._ioctl(process, call)

    def _close_range(self, process: Process, call: Call) -> None:
        first, last = call.number(0), call.number(1)
        for fd in [fd for fd in process.fds if first <= fd <= last]:
            if "CLOSE_RANGE_CLOEXEC" in call.flags(2):
                process.fds[fd].close_on_exec = True
            else:
                del process.fds[fd]

    def _duplicate(self, process: Process, call: Call, close_on_exec: bool) -> None:
        source = call.fd(0)
        if call.result == source:
            return
        if held := process.fds.get(source):
            process.fds[call.result] = _Descriptor(held.description, close_on_exec)
        else:
            process.fds.pop(call.result, None)

    def _fcntl(self, process: Process, call: Call) -> None:
        command = call.args[1]
        held = process.fds.get(call.fd(0))
        if command.startswith("F_DUPFD"):
            self._duplicate(process, call, command == "F_DUPFD_CLOEXEC")
        elif held and command == "F_SETFD":
            held.close_on_exec = "FD_CLOEXEC" in call.flags(2)
        elif held and command == "F_SETFL":
            keep = held.description.flags - {"O_APPEND"}
            held.description.flags = keep | (call.flags(2) & {"O_APPEND"})

    def _ioctl(self, process: Process, call: Call) -> None:
        held = process.fds.get(call.fd(0))
        if held and call.args[1] in ("FIOCLEX", "FIONCLEX"):
            held.close_on_exec = call.args[1] == "FIOCLEX"

    def directory(self, call: Call, index: int | None) -> Description:
        """Where a relative path of this call starts; `index` is its descriptor argument."""
        process = self.of(call.pid)
        if index is None or call.fd(index) == AT_FDCWD:
            return Description(path=process.place.cwd)
        return process.get(call.fd(index)) or Description(path=call.fd_path(index) or "")


def _flags(arg: str) -> list[str]:
    """The flags in a clone argument: `flags=A|B` or clone3's `{flags=A|B, …}`."""
    _, found, rest = arg.partition("flags=")
    return rest.split(",")[0].strip("{} ").split("|") if found else []
