"""What each system call does to the tree below the root, as typed operations.

Owns: the meaning of calls. It must not know strace's text nor which crash states are legal. What
strace cannot show (a shared writable mapping, io_uring) is an error here, never silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace as stamped

from . import ops
from .calls import Call, TraceError
from .processes import CLONES, Description, Processes
from .shadow import Parts, Shadow

FOLLOWED = CLONES | {"execve", "close", "close_range", "dup", "dup2", "dup3", "fcntl", "ioctl"}
_CREATORS = {"open", "openat", "creat", "mkdir", "mkdirat", "rename", "renameat", "renameat2",
             "link", "linkat"}  # fmt: skip

Overlapping = Callable[[], Iterable[Call]]
Argument = tuple[int | None, int]  # a directory's descriptor, if any, and a path


class Meaning:
    def __init__(
        self, root: str, ack: str, processes: Processes, drop: Callable[[str], bool]
    ) -> None:
        self.root, self.ack, self.processes = root, ack, processes
        self.shadow = Shadow()
        self.found: list[ops.Op] = []
        self.dropped: set[int] = set()
        self.drop = drop
        self._early: set[int] = set()
        self._overlapping: Overlapping = tuple
        self._now = 0

    def apply(self, call: Call, overlapping: Overlapping) -> None:
        """`overlapping` gives the calls that had begun when this one returned, and return later."""
        if call.seq in self._early:
            return
        self._overlapping, self._now = overlapping, call.seq
        self._apply(call)

    def _apply(self, call: Call) -> None:
        if call.name in FOLLOWED and call.ok:
            self.processes.follow(call)
        elif call.ok or (call.name in ("link", "linkat") and call.error == "EEXIST"):
            getattr(self, f"_{call.name}", self._unknown)(call)

    def _unknown(self, call: Call) -> None:
        raise TraceError(f"no meaning is written down for {call.name}")

    # --- places

    def _parts(self, call: Call, at: int | None, index: int) -> Parts | None:
        """The path argument as names below the root; None outside."""
        start = self.processes.directory(call, at)
        base = self._absolute(start) if start.ino is not None else start.path
        return self._below(os.path.normpath(os.path.join(base, call.path(index))))

    def _absolute(self, description: Description) -> str:
        assert description.ino is not None
        return os.path.join(self.root, self.shadow.path(description.ino)).rstrip("/")

    def _below(self, path: str) -> Parts | None:
        if path == self.root:
            return ()
        if not path.startswith(self.root + "/"):
            return None
        return tuple(path[len(self.root) + 1 :].split("/"))

    def _need(self, parts: Parts) -> int:
        """The inode of a name that the kernel found.

        Where the tree lacks it, another process's call was creating it and had not yet returned.
        """
        for depth in range(1, len(parts) + 1):
            if self.shadow.lookup(parts[:depth]) is None:
                self._explain(parts[:depth])
        ino = self.shadow.lookup(parts)
        assert ino is not None
        return ino

    def _explain(self, parts: Parts) -> None:
        for call in self._overlapping():
            if call.seq in self._early or not call.ok or call.name not in _CREATORS:
                continue
            if self._parts(call, *_target(call)) == parts:
                self._early.add(call.seq)
                self._apply(call)
                if self.shadow.lookup(parts) is not None:
                    return
        raise TraceError(f"{'/'.join(parts)} exists, and no call was seen that made it")

    def _emit(self, op: ops.Op, call: Call, *, after: int = 0) -> None:
        seq = 2 * self._now + after
        begun = seq if after else 2 * call.begun
        self.found.append(stamped(op, seq=seq, begun=begun, pid=call.pid))

    # --- names

    def _new(self, call: Call, kind: type[ops.NameOp], parts: Parts) -> int:
        directory = self._need(parts[:-1])
        make = self.shadow.new_directory if kind is ops.Mkdir else self.shadow.new_file
        ino, path = make(), "/".join(parts)
        self.shadow.add(directory, parts[-1], ino)
        if directory in self.dropped or self.drop(path):
            self.dropped.add(ino)
        else:
            self._emit(kind(path=path, dir=directory, name=parts[-1], ino=ino), call)
        return ino

    def _make_directory(self, call: Call, at: int | None, index: int) -> None:
        parts = self._parts(call, at, index)
        if parts and self.shadow.lookup(parts) is None:
            self._new(call, ops.Mkdir, parts)

    def _mkdir(self, call: Call) -> None:
        self._make_directory(call, None, 0)

    def _mkdirat(self, call: Call) -> None:
        self._make_directory(call, 0, 1)

    def _remove(self, call: Call, at: int | None, index: int) -> None:
        parts = self._parts(call, at, index)
        if not parts:
            return
        ino, directory = self._need(parts), self._need(parts[:-1])
        self.shadow.remove(directory, parts[-1])
        if ino not in self.dropped:
            path = "/".join(parts)
            self._emit(ops.Unlink(path=path, dir=directory, name=parts[-1], ino=ino), call)

    def _unlink(self, call: Call) -> None:
        self._remove(call, None, 0)

    _rmdir = _unlink

    def _unlinkat(self, call: Call) -> None:
        self._remove(call, 0, 1)

    def _move(self, call: Call, kind: type[ops.Moved], source: Argument, target: Argument) -> None:
        old, new = self._parts(call, *source), self._parts(call, *target)
        if old is None and new is None:
            return
        if not old or not new:
            raise TraceError(f"{call.name} crosses the root: {call.path(source[1])}")
        ino = self._need(old)
        old_directory, directory = self._need(old[:-1]), self._need(new[:-1])
        if ino in self.dropped and not self.drop("/".join(new)):
            raise TraceError(f"{call.name} gives a dropped file a name that is kept: {new}")
        if kind is ops.Rename and self.shadow.lookup(new) == ino:
            return
        if ino not in self.dropped:
            moved = kind(
                path="/".join(new), dir=directory, name=new[-1], ino=ino,
                source="/".join(old), source_dir=old_directory, source_name=old[-1],
            )  # fmt: skip
            self._emit(moved, call)
        if kind is ops.Rename:
            self.shadow.remove(old_directory, old[-1])
        if kind is not ops.LostLink:
            self.shadow.add(directory, new[-1], ino)

    def _rename(self, call: Call) -> None:
        self._move(call, ops.Rename, (None, 0), (None, 1))

    def _renameat(self, call: Call) -> None:
        self._move(call, ops.Rename, (0, 1), (2, 3))

    def _renameat2(self, call: Call) -> None:
        if call.flags(4) - {"0", "RENAME_NOREPLACE"}:
            raise TraceError(f"renameat2 with {call.args[4]} has no meaning here")
        self._renameat(call)

    def _link(self, call: Call) -> None:
        self._move(call, ops.Link if call.ok else ops.LostLink, (None, 0), (None, 1))

    def _linkat(self, call: Call) -> None:
        if not call.path(1) or call.path(1).startswith("/proc/"):
            raise TraceError("linkat of a descriptor has no meaning here")
        self._move(call, ops.Link if call.ok else ops.LostLink, (0, 1), (2, 3))

    # --- opening

    def _opened(self, call: Call, at: int | None, index: int, flags: frozenset[str]) -> None:
        parts = self._parts(call, at, index)
        description = Description(flags=flags)
        if parts is None:
            start = self.processes.directory(call, at)
            base = self._absolute(start) if start.ino is not None else start.path
            description.path = os.path.normpath(os.path.join(base, call.path(index)))
            description.ack = description.path == self.ack
        else:
            description.ino = self._open_below(call, parts, flags)
        self.processes.of(call.pid).open(call.result, description)

    def _open_below(self, call: Call, parts: Parts, flags: frozenset[str]) -> int:
        if flags & {"O_TMPFILE", "__O_TMPFILE"}:
            raise TraceError("O_TMPFILE has no meaning here")
        if "O_CREAT" in flags and self.shadow.lookup(parts) is None:
            return self._new(call, ops.Create, parts)
        ino = self._need(parts)
        if "O_TRUNC" in flags and self.shadow.contents.get(ino):
            self.resize(call, ino, 0)
        return ino

    def _open(self, call: Call) -> None:
        self._opened(call, None, 0, call.flags(1))

    def _openat(self, call: Call) -> None:
        self._opened(call, 0, 1, call.flags(2))

    def _creat(self, call: Call) -> None:
        self._opened(call, None, 0, frozenset({"O_WRONLY", "O_CREAT", "O_TRUNC"}))

    def resize(self, call: Call, ino: int, size: int) -> None:
        self.shadow.resize(ino, size)
        if ino not in self.dropped:
            self._emit(ops.Truncate(path=self.shadow.path(ino), ino=ino, size=size), call)

    def _chdir(self, call: Call) -> None:
        place = self.processes.of(call.pid).place
        place.cwd = os.path.normpath(os.path.join(place.cwd, call.path(0)))

    def _fchdir(self, call: Call) -> None:
        start = self.processes.directory(call, 0)
        place = self.processes.of(call.pid).place
        place.cwd = self._absolute(start) if start.ino is not None else start.path


def _target(call: Call) -> Argument:
    """Which arguments hold the name that a creating call makes: its directory and its path."""
    if call.name in ("rename", "link"):
        return None, 1
    if call.name in ("renameat", "renameat2", "linkat"):
        return 2, 3
    return (0, 1) if call.name.endswith("at") and call.name != "creat" else (None, 0)
