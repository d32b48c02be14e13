"""The arena's memory: a memfd that two processes map, and that the kernel frees with the last.

Owns making it, touching it and letting it go; what lies in it is `slots`'. It has no name in any
file system, so that nothing is left after any death.

The training process closes it, and drops it, in a forked child (a loader's worker): such a child
would keep the memory after its parent's death.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import time
import weakref
from collections.abc import Callable

from walrecover import cgroups
from walrecover.arena.layout import PAGE, align
from walrecover.arena.slots import Slot
from walrecover.errors import Corrupt, StorageFailed

FORMAT = 1
SPARE_BYTES = 256 << 20
"""What must be left of the memory that is available: the training goes on, and needs some."""

UNMAPPED_SECONDS = 1.0
"""For the mappings of a process that has just ended to be gone."""

_MAGIC = b"WALRAREN"
_TOUCHED_AT_ONCE = 16 << 20
_MADV_REMOVE, _MADV_DONTFORK, _MADV_DONTDUMP, _MADV_POPULATE_WRITE = 9, 10, 16, 23
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Arena:
    """Shared memory of several slots. `fd` can be handed to another process, which attaches it."""

    def __init__(self, fd: int, base: int, slots: int, room: int) -> None:
        """Use `create` or `attach`."""
        self.fd, self.room = fd, room
        self._base = base
        self.bytes = PAGE + slots * room
        self.slots = tuple(Slot(n, base + PAGE + n * room, room) for n in range(slots))

    @classmethod
    def create(
        cls, slots: int, room: int, available: Callable[[], int | None] | None = None
    ) -> Arena:
        """Memory for so many slots of `room` bytes, not touched yet.

        Raises StorageFailed where the machine, or this process's control group, has too little:
        memory that is promised and not there ends the process once it is touched.
        """
        room = align(room)
        total = PAGE + slots * room
        found = (available or _available)()
        if found is not None and total + SPARE_BYTES > found:
            raise StorageFailed(
                f"the arena needs {total >> 20} MiB of memory and {SPARE_BYTES >> 20} MiB beside "
                f"it, and {found >> 20} MiB are available: captures are written from living "
                f"memory, and training waits for the disk"
            )
        try:
            fd = os.memfd_create("walrecover-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise StorageFailed(f"no memory can be shared: {error.strerror}") from error
        try:
            os.ftruncate(fd, total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # nobody can cut it under our feet (SIGBUS)
            base = _map(fd, total)
        except OSError as error:
            os.close(fd)
            raise StorageFailed(f"{total >> 20} MiB cannot be shared: {error.strerror}") from error
        os.pwrite(fd, _head(slots, room), 0)
        arena = cls(fd, base, slots, room)
        for slot in arena.slots:
            slot.format()
        arena._keep_from_children()
        return arena

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Map an arena that another process made; owns `fd` from here on. Raises Corrupt."""
        slots, room = _read_head(fd, _SEALS)
        return cls(fd, _map(fd, PAGE + slots * room), slots, room)

    @property
    def address(self) -> int:
        """Where its `bytes` lie; 0 once it is closed."""
        return self._base

    def touch(self) -> None:
        """Have the kernel give all of the memory now: later each new page would cost a capture
        four times what a copy does. Before the first capture; takes a while, and lets other
        threads run. Raises StorageFailed."""
        for begin in range(0, self.bytes, _TOUCHED_AT_ONCE):
            size = min(_TOUCHED_AT_ONCE, self.bytes - begin)
            if not _advise(self._base + begin, size, _MADV_POPULATE_WRITE):
                number = ctypes.get_errno()
                if number in (errno.ENOMEM, errno.EFAULT):
                    raise StorageFailed(f"the arena's memory is not given: {os.strerror(number)}")
                self._touch_by_hand(begin, size)  # before Linux 5.14

    def _touch_by_hand(self, begin: int, size: int) -> None:
        for page in range(begin, begin + size, PAGE):
            place = ctypes.c_char.from_address(self._base + page + PAGE - 1)
            place.value = place.value

    def _keep_from_children(self) -> None:
        _advise(self._base, self.bytes, _MADV_DONTFORK)
        _advise(self._base, self.bytes, _MADV_DONTDUMP)
        _living.add(self)

    def seal(self, kept: int) -> None:
        """Have the kernel refuse every write to it from here on, by whomever: it does so only where
        nobody has it mapped for writing any more, which this process then has not either. All
        slots but one are given back. No slot must be used any more. Raises OSError."""
        for slot in self.slots:
            if slot.number != kept:
                _advise(slot.address, self.room, _MADV_REMOVE)
        self._unmap()
        deadline = time.monotonic() + UNMAPPED_SECONDS
        while True:
            try:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.001)

    def close(self) -> None:
        """Let go. The slots must not be used any more."""
        if self.fd < 0:
            return
        self._unmap()
        os.close(self.fd)
        self.fd = -1

    def _unmap(self) -> None:
        if self._base:
            self.slots = ()
            _unmap(self._base, self.bytes)
            self._base = 0


class Sealed:
    """One slot of sealed memory, mapped for this process alone and not for its children. What is
    written here is nobody else's. `memory` keeps it: a view of any part of that is enough."""

    def __init__(self, fd: int, number: int) -> None:
        """Keeps no descriptor. Raises Corrupt, OSError."""
        slots, room = _read_head(fd, _SEALS | fcntl.F_SEAL_WRITE)
        if not 0 <= number < slots:
            raise Corrupt(f"an arena of {slots} slots has no slot {number}")
        address = _map(fd, room, PAGE + number * room, private=True)
        _advise(address, room, _MADV_DONTFORK)
        _advise(address, room, _MADV_DONTDUMP)
        self.memory = (ctypes.c_char * room).from_address(address)
        weakref.finalize(self.memory, _unmap_here, os.getpid(), address, room).atexit = False
        self.slot = Slot(number, address, room)


def _unmap_here(owner: int, address: int, nbytes: int) -> None:
    if os.getpid() == owner:  # a forked child has something else there, or nothing
        _unmap(address, nbytes)


def _read_head(fd: int, seals: int) -> tuple[int, int]:
    """How many slots of how many bytes it has. Raises Corrupt for what is no arena with at least
    these seals."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, PAGE, 0)
    words = [int.from_bytes(head[at : at + 8], "little") for at in (8, 16, 24)]
    if head[:8] != _MAGIC or len(head) != PAGE or words[0] != FORMAT:
        raise Corrupt("the memory that was handed over is no arena of this release")
    _, slots, room = words
    if slots < 1 or room % PAGE or PAGE + slots * room != size:
        raise Corrupt(f"an arena of {size} bytes says {slots} slots of {room}")
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals != seals:
        raise Corrupt("the memory that was handed over is not sealed")
    return slots, room


_living: weakref.WeakSet[Arena] = weakref.WeakSet()


def _forget_in_child() -> None:
    for arena in list(_living):
        if arena.fd >= 0:
            os.close(arena.fd)  # the mapping is not in the child: MADV_DONTFORK
            arena.fd, arena.slots = -1, ()
    _living.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _head(slots: int, room: int) -> bytes:
    words = (FORMAT, slots, room)
    return (_MAGIC + b"".join(word.to_bytes(8, "little") for word in words)).ljust(PAGE, b"\0")


def _available() -> int | None:
    return cgroups.available(cgroups.memory_cgroup())


def _map(fd: int, nbytes: int, offset: int = 0, *, private: bool = False) -> int:
    """The address. (Python's `mmap` would keep a descriptor of its own, in forked children too.)"""
    found = _libc().mmap(
        None,
        ctypes.c_size_t(nbytes),
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_PRIVATE | _MAP_NORESERVE if private else mmap.MAP_SHARED,
        fd,
        ctypes.c_long(offset),
    )
    if found in (None, _MAP_FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def _unmap(address: int, nbytes: int) -> None:
    _libc().munmap(ctypes.c_void_p(address), ctypes.c_size_t(nbytes))


def _advise(address: int, nbytes: int, advice: int) -> bool:
    return not _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), advice)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    return libc
