"""What calls on descriptors do to contents and to durability.

Owns: writes, sizes, copies, syncs and mappings. It builds on `meaning`, which owns names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import ops
from .calls import Call, TraceError
from .meaning import Meaning
from .processes import Description


class Contents(Meaning):
    def _held(self, call: Call, index: int = 0) -> Description | None:
        return self.processes.of(call.pid).get(call.fd(index))

    # --- writes

    def _wrote(
        self,
        call: Call,
        read: Callable[[], bytes],
        offset: int | None = None,
        *,
        fd: int = 0,
        flags: frozenset[str] = frozenset(),
    ) -> None:
        held = self._held(call, fd)
        if held is None:
            return self._must_be_outside(call, fd)
        if call.result == 0 or not (held.ack or held.ino is not None):
            return None
        data = read()[: call.result]
        if held.ino is None:
            return self._acknowledged(call, held, data)
        at = held.offset if offset is None else offset
        if held.appends or "RWF_APPEND" in flags:
            at = len(self.shadow.contents[held.ino])
        if offset is None:
            held.offset = at + len(data)
        sync = held.syncs or next(iter(flags & {"RWF_DSYNC", "RWF_SYNC"}), "")
        self._put(call, held.ino, at, data, sync)

    def _put(self, call: Call, ino: int, at: int, data: bytes, sync: str = "") -> None:
        self.shadow.write(ino, at, data)
        if ino in self.dropped:
            return
        path = self.shadow.path(ino)
        self._emit(ops.Write(path=path, ino=ino, offset=at, data=data), call)
        if sync:
            extent = (at, at + len(data))
            self._emit(ops.Sync(path=path, ino=ino, how=sync, extent=extent), call, after=1)

    def _acknowledged(self, call: Call, held: Description, data: bytes) -> None:
        *lines, held.partial = (held.partial + data).split(b"\n")
        for line in lines:
            self._emit(ops.Ack(text=line.decode()), call)

    def _write(self, call: Call) -> None:
        self._wrote(call, lambda: call.data(1))

    def _pwrite64(self, call: Call) -> None:
        self._wrote(call, lambda: call.data(1), call.number(3))

    def _writev(self, call: Call) -> None:
        self._wrote(call, lambda: call.vectors(1))

    def _pwritev(self, call: Call) -> None:
        self._wrote(call, lambda: call.vectors(1), call.number(3))

    def _pwritev2(self, call: Call) -> None:
        at = call.number(3)
        flags = call.flags(4)
        self._wrote(call, lambda: call.vectors(1), None if at == -1 else at, flags=flags)

    def _must_be_outside(self, call: Call, fd: int) -> None:
        path = call.fd_path(fd)
        if path is not None and self._below(path) is not None:
            raise TraceError(f"{call.name}: lost track of the descriptor of {path}")

    # --- sizes and offsets

    def _lseek(self, call: Call) -> None:
        if held := self._held(call):
            held.offset = call.result

    def _read(self, call: Call) -> None:
        if held := self._held(call):
            held.offset += call.result

    _readv = _read

    def _ftruncate(self, call: Call) -> None:
        held = self._held(call)
        if held and held.ino is not None:
            self.resize(call, held.ino, call.number(1))

    def _truncate(self, call: Call) -> None:
        if parts := self._parts(call, None, 0):
            self.resize(call, self._need(parts), call.number(1))

    def _fallocate(self, call: Call) -> None:
        held = self._held(call)
        if held is None or held.ino is None:
            return
        mode, start = call.flags(1), call.number(2)
        end, size = start + call.number(3), len(self.shadow.contents[held.ino])
        zeroes = mode & {"FALLOC_FL_PUNCH_HOLE", "FALLOC_FL_ZERO_RANGE"}
        if mode - zeroes - {"0", "FALLOC_FL_KEEP_SIZE"}:
            raise TraceError(f"fallocate with {call.args[1]} has no meaning here")
        if zeroes and start < size:
            self._put(call, held.ino, start, bytes(min(end, size) - start))
        if end > size and "FALLOC_FL_KEEP_SIZE" not in mode:
            self.resize(call, held.ino, end)

    # --- copies inside the kernel

    def _copy_file_range(self, call: Call) -> None:
        self._copied(call, source=0, source_at=1, target=2, target_at=3)

    def _sendfile(self, call: Call) -> None:
        self._copied(call, source=1, source_at=2, target=0, target_at=None)

    def _copied(
        self, call: Call, source: int, source_at: int, target: int, target_at: int | None
    ) -> None:
        to, origin = self._held(call, target), self._held(call, source)
        if to is None or to.ino is None:
            return
        if origin is None:
            raise TraceError(f"{call.name} from a descriptor that was not seen to open")
        start = _offset(call, source_at)
        at = _offset(call, target_at) if target_at is not None else None
        begin = origin.offset if start is None else start
        if origin.ino is not None:
            data = bytes(self.shadow.contents[origin.ino][begin : begin + call.result])
        else:
            data = Path(origin.path).read_bytes()[begin : begin + call.result]
        if start is None:
            origin.offset += call.result
        self._wrote(call, lambda: data, at, fd=target)

    # --- durability

    def _fsync(self, call: Call) -> None:
        held = self._held(call)
        if held is None:
            return self._must_be_outside(call, 0)
        if held.ino is None or held.ino in self.dropped:
            return
        seen = call.fd_path(0)
        known = self.shadow.paths(held.ino) or {""}
        if seen is not None and "/".join(self._below(seen) or ()) not in known:
            raise TraceError(f"{call.name} of {seen}, which was taken for {sorted(known)}")
        directory = held.ino in self.shadow.directories
        path = self.shadow.path(held.ino)
        self._emit(ops.Sync(path=path, ino=held.ino, how=call.name, directory=directory), call)

    _fdatasync = _fsync

    def _sync(self, call: Call) -> None:
        self._emit(ops.Sync(ino=ops.EVERYTHING, how=call.name), call)

    def _syncfs(self, call: Call) -> None:
        held = self._held(call)
        if held and held.ino is not None:
            self._sync(call)

    def _sync_file_range(self, call: Call) -> None:
        """Promises nothing: it commits neither sizes nor the device's cache."""

    _msync = _sync_file_range

    # --- what strace cannot show

    def _mmap(self, call: Call) -> None:
        shared = call.flags(3) & {"MAP_SHARED", "MAP_SHARED_VALIDATE"}
        if not shared or "PROT_WRITE" not in call.flags(2) or "MAP_ANONYMOUS" in call.flags(3):
            return
        held = self._held(call, 4)
        if held and held.ino is not None and held.ino not in self.dropped:
            raise TraceError(f"writes through a mapping of {self.shadow.path(held.ino)} are unseen")

    def _io_uring_setup(self, call: Call) -> None:
        raise TraceError("writes through io_uring are unseen")

    def _symlink(self, call: Call) -> None:
        self._no_links(self._parts(call, None, 1))

    def _symlinkat(self, call: Call) -> None:
        self._no_links(self._parts(call, 1, 2))

    def _no_links(self, parts: tuple[str, ...] | None) -> None:
        if parts is not None:
            raise TraceError(f"symbolic links have no meaning here: {'/'.join(parts)}")


def _offset(call: Call, index: int) -> int | None:
    """An offset passed by reference, as `[4096]` or `[4096] => [8192]`; None for NULL."""
    text = call.args[index]
    return None if text == "NULL" else int(text.split("]")[0].strip("["))
