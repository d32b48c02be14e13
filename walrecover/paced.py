"""Writing a shard beside a training that goes on: large aligned writes, past the page cache.

Owns the file's bytes and their way to the disk; how fast it goes is the caller's, who is asked
between two pieces. A buffered writer would fill the page cache, and the journal's next fsync would
wait behind all of it (measured: 230 times as long); O_DIRECT over preallocated space does not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from walrecover.failpoints import failpoint
from walrecover.files import SyncFailed
from walrecover.shards import TensorData

PIECE_BYTES = 1 << 20
BESIDE_BYTES = 512 << 10
"""Beside a training, whose journal's fsync waits behind one write at a time: with this, p99 is 1.6
times that of an idle disk, with pieces of 1 MiB 2.2 times. Smaller ones take longer in all."""

BLOCK = 4096
SYNCED_AT_ONCE = 8 << 20
"""Where the file system does not take O_DIRECT, so much is written before it is waited for."""

Breathe = Callable[[int], object]
"""Called with the bytes done since the last call; may take its time, or raise. What it returns is
true while somebody else needs the disk."""


def put(path: Path, tensors: Mapping[str, TensorData], breathe: Breathe) -> None:
    """Write a new safetensors file, durable on return. Raises OSError.

    Tensors come in the order of their addresses, so that those that lie together in memory are
    written from where they are.
    """
    ordered = sorted(tensors.items(), key=lambda item: (item[1].address, item[0]))
    head = _head(ordered)
    runs = _runs([tensor for _, tensor in ordered])
    size = len(head) + sum(nbytes for _, nbytes in runs)
    fd, direct = _open(path)
    try:
        _preallocate(fd, size)
        _write(fd, direct, head, runs, breathe)
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
        failpoint("shards.tensors.written")
        _sync(fd, path)
    finally:
        os.close(fd)


# --- what is written ------------------------------------------------------------------------------


def _head(tensors: list[tuple[str, TensorData]]) -> bytes:
    """Length and JSON, filled with spaces to a whole block, so that the data begins with one."""
    entries = {}
    place = 0
    for name, tensor in tensors:
        dtype, shape = _known(tensor)
        entries[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": (place, place + tensor.nbytes),
        }
        place += tensor.nbytes
    text = msgspec.json.encode(entries)
    whole = -(-(8 + len(text)) // BLOCK) * BLOCK
    return (whole - 8).to_bytes(8, "little") + text.ljust(whole - 8)


def _known(tensor: TensorData) -> tuple[str, tuple[int, ...]]:
    name = _NAMES.get(tensor.dtype)
    return (name, tensor.shape) if name else ("U8", (tensor.nbytes,))


# What safetensors calls them. Any other type travels as bytes; its name is in the vote.
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def _runs(tensors: list[TensorData]) -> list[tuple[int, int]]:
    """Addresses and sizes, those that follow each other in memory as one."""
    found: list[tuple[int, int]] = []
    for tensor in tensors:
        if not tensor.nbytes:
            continue
        if found and sum(found[-1]) == tensor.address:
            found[-1] = (found[-1][0], found[-1][1] + tensor.nbytes)
        else:
            found.append((tensor.address, tensor.nbytes))
    return found


# --- how ------------------------------------------------------------------------------------------


def _open(path: Path) -> tuple[int, bool]:
    """A new file, and whether it is written past the page cache. Names are written once."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # The file system does not take it. Linux has created the file before it refused.
    return os.open(path, flags & ~os.O_EXCL | os.O_TRUNC, 0o600), False


def _preallocate(fd: int, nbytes: int) -> None:
    """Ask for the space now: a full disk is found before anything is written."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, 0, 0, nbytes) and ctypes.get_errno() in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _write(
    fd: int, direct: bool, head: bytes, runs: list[tuple[int, int]], breathe: Breathe
) -> None:
    place = unsynced = 0
    most = PIECE_BYTES
    for piece in _pieces(head, runs, mmap.mmap(-1, PIECE_BYTES)):
        left = piece
        while left:
            try:
                written = os.pwrite(fd, left[:most], place)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                direct = False  # it takes the flag, and not these blocks
                _make_buffered(fd)
                continue
            left = left[written:]
            place += written
            unsynced += written
            if not direct and unsynced >= SYNCED_AT_ONCE:
                os.fdatasync(fd)
                unsynced = 0
            most = BESIDE_BYTES if breathe(written) else PIECE_BYTES


def _make_buffered(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def _pieces(head: bytes, runs: list[tuple[int, int]], scratch: mmap.mmap) -> Iterator[memoryview]:
    """The file's bytes in whole blocks, the last one filled with zeros; of at most PIECE_BYTES,
    and aligned in memory: where they lie so, or from `scratch`, which is overwritten each time."""
    view = memoryview(scratch)
    base = ctypes.addressof(ctypes.c_char.from_buffer(scratch))
    filled = 0
    for begin in range(0, len(head), PIECE_BYTES):
        part = head[begin : begin + PIECE_BYTES]
        view[: len(part)] = part
        yield view[: len(part)]
    for address, nbytes in runs:
        while nbytes:
            if not filled and address % BLOCK == 0 and nbytes >= BLOCK:
                size = min(PIECE_BYTES, nbytes // BLOCK * BLOCK)
                yield _view(address, size)
            else:
                size = min(PIECE_BYTES - filled, nbytes)
                ctypes.memmove(base + filled, address, size)
                filled += size
                if filled == PIECE_BYTES:
                    yield view
                    filled = 0
            address += size
            nbytes -= size
    if filled:
        whole = -(-filled // BLOCK) * BLOCK
        ctypes.memset(base + filled, 0, whole - filled)
        yield view[:whole]


def _view(address: int, nbytes: int) -> memoryview:
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def _sync(fd: int, path: Path) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror, os.fspath(path)) from error
