"""The shard store: one rank's files of a snapshot, written once, read with every check.

Owns safetensors and msgpack files below `snapshots/`; knows nothing of torch (tensors come as
addresses, go as bytes), of votes or of the sequence. Every byte of a shard is covered by exactly
one digest: the header's, or that of the tensor it belongs to.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from walrecover.errors import Corrupt, StorageFailed
from walrecover.failpoints import failpoint
from walrecover.files import open_regular, storage, sync_file, write_durably
from walrecover.manifest import FileAt, TensorAt, digest_of
from walrecover.reuse import Offer, worthwhile

CHUNK_BYTES = 4 << 20
WORTH_A_THREAD_BYTES = 256 << 10
"""Fewer are hashed in less time than a thread takes to begin."""
MAX_PLAIN_BYTES = 4 << 30


class TensorData(NamedTuple):
    """Contiguous little-endian bytes in memory. `owner` keeps them alive."""

    dtype: str
    shape: tuple[int, ...]
    address: int
    nbytes: int
    owner: object

    def view(self) -> memoryview:
        if not self.nbytes:
            return memoryview(b"")
        return memoryview((ctypes.c_char * self.nbytes).from_address(self.address)).cast("B")


def digests(tensors: Mapping[str, TensorData]) -> dict[str, str]:
    """The digest of every tensor's bytes, each piece of memory hashed once."""
    seen: dict[tuple[int, int], str] = {}
    found = {}
    for name, tensor in tensors.items():
        place = (tensor.address, tensor.nbytes)
        if place not in seen:
            seen[place] = digest_of(tensor.view())
        found[name] = seen[place]
    return found


def spec_of(tensor: TensorData) -> Any:
    """How safetensors is told of a tensor. A dtype that it does not know travels as bytes; its
    name is in the vote."""
    from safetensors import TensorSpec

    place = {"data_ptr": tensor.address, "data_len": tensor.nbytes}
    try:
        return TensorSpec(dtype=tensor.dtype, shape=tensor.shape, **place)
    except Exception:
        return TensorSpec(dtype="uint8", shape=(tensor.nbytes,), **place)


def put_at_once(path: Path, tensors: Mapping[str, TensorData]) -> None:
    """Write a safetensors file as fast as it goes, durable on return. Raises OSError."""
    from safetensors import serialize_file

    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    try:
        serialize_file(specs, path)
    except OSError:
        raise
    except Exception as error:  # safetensors has its own error type for I/O
        raise OSError(None, str(error), str(path)) from error
    failpoint("shards.tensors.written")
    sync_file(path)


class Writing(NamedTuple):
    """How a shard is written: `digests` of tensors in memory, and `put` of their file. The saver
    has its own: it knows the digests before it begins, and writes at a pace."""

    digests: Callable[[Mapping[str, TensorData]], dict[str, str]] = digests
    put: Callable[[Path, Mapping[str, TensorData]], None] = put_at_once


AT_ONCE = Writing()


def write_tensors(
    snapshots: Path,
    relative: str,
    tensors: Mapping[str, TensorData],
    writing: Writing = AT_ONCE,
    offers: Mapping[str, Offer] | None = None,
) -> tuple[FileAt, dict[str, TensorAt]]:
    """Write a safetensors shard, durable on return (its name is durable once the folder is).

    Tensors that are the same memory are written once; those whose bytes are what an older shard
    offers are not written, and get that address. Hashing runs beside the write, but for what is
    offered. Raises StorageFailed.
    """
    path = snapshots / relative
    if path.exists():
        raise StorageFailed(f"{path} exists already: the names of shards are written once")
    keys: dict[_Memory, str] = {}
    for name, tensor in tensors.items():
        keys.setdefault(_memory(tensor), name)
    unique = {name: tensors[name] for name in keys.values()}
    found, kept = _unchanged(unique, offers or {}, writing)
    rest = {name: tensor for name, tensor in unique.items() if name not in kept}
    unknown = {name: tensor for name, tensor in rest.items() if name not in found}
    hashed = _begin(lambda: found.update(writing.digests(unknown)), _bytes_of(unknown))
    try:
        with storage(f"cannot write {path}"):
            writing.put(path, rest)
    finally:
        hashed()
    failpoint("shards.tensors.synced")
    file = _describe(snapshots, relative)
    addresses = {}
    for name, tensor in tensors.items():
        key = keys[_memory(tensor)]
        place = (kept[key].file, kept[key].key) if key in kept else (relative, key)
        addresses[name] = TensorAt(*place, found[key], tensor.dtype, tensor.shape)
    return file, addresses


_Memory = tuple[int, int, str, tuple[int, ...]]


def _memory(tensor: TensorData) -> _Memory:
    return tensor.address, tensor.nbytes, tensor.dtype, tensor.shape


def _unchanged(
    tensors: Mapping[str, TensorData], offers: Mapping[str, Offer], writing: Writing
) -> tuple[dict[str, str], dict[str, TensorAt]]:
    """The digests of what is offered, and where those lie that are what older shards hold."""
    nbytes = {name: tensor.nbytes for name, tensor in tensors.items()}
    offered = {name: offers[name] for name in tensors if name in offers}
    likely = worthwhile(offered, nbytes)
    found = _by_two({name: tensors[name] for name in likely}, writing)
    same = {name: offer for name, offer in likely.items() if found[name] == offer.at.digest}
    return found, {name: offer.at for name, offer in worthwhile(same, nbytes).items()}


def _by_two(tensors: Mapping[str, TensorData], writing: Writing) -> dict[str, str]:
    """Their digests, half of the bytes in a thread beside this one."""
    halves: tuple[dict[str, TensorData], ...] = ({}, {})
    sizes = [0, 0]
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        lighter = 0 if sizes[0] <= sizes[1] else 1
        halves[lighter][name] = tensor
        sizes[lighter] += tensor.nbytes
    found: dict[str, str] = {}
    hashed = _begin(lambda: found.update(writing.digests(halves[0])), sizes[0])
    try:
        other = writing.digests(halves[1])
    finally:
        hashed()
    return found | other


def _bytes_of(tensors: Mapping[str, TensorData]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _begin(work: Callable[[], None], nbytes: int) -> Callable[[], None]:
    """Begin to hash so many bytes beside this thread. Returns what waits for it."""
    if nbytes < WORTH_A_THREAD_BYTES:
        return work
    thread = threading.Thread(target=work, name="walrecover-hash")
    try:
        thread.start()
    except RuntimeError:  # from Python 3.12 on none begins once the interpreter ends
        return work
    return thread.join


def _describe(snapshots: Path, relative: str) -> FileAt:
    """What was just written, as votes describe it."""
    try:
        fd = open_regular(snapshots, relative)
        try:
            return FileAt(os.fstat(fd).st_size, digest_of(_read_header(fd, relative)))
        finally:
            os.close(fd)
    except (Corrupt, OSError) as error:
        raise StorageFailed(f"cannot read back {snapshots / relative}: {error}") from error


def write_plain(snapshots: Path, relative: str, data: bytes) -> FileAt:
    """Write a rank's msgpack file, durable on return. Raises StorageFailed."""
    path = snapshots / relative
    with storage(f"cannot write {path}"):
        try:
            write_durably(path, data)
        except FileExistsError:
            raise StorageFailed(
                f"{path} exists already: the names of shards are written once"
            ) from None
    failpoint("shards.plain.written")
    return FileAt(len(data), digest_of(data))


def _read_header(fd: int, relative: str) -> bytes:
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    size = os.fstat(fd).st_size
    if not 0 < length <= size - 8:
        raise Corrupt(f"{relative}: its header says {length} bytes, the file has {size}")
    header = os.pread(fd, length + 8, 0)
    if len(header) != length + 8:
        raise Corrupt(f"{relative}: its header is cut short")
    return header


class _Span(msgspec.Struct):
    data_offsets: tuple[int, int]


class Shard:
    """A safetensors file open for reading, its header checked against the vote.

    Raises Corrupt (a difference, a missing or short file) or OSError (the disk cannot be read,
    which is no proof of damage).
    """

    def __init__(self, snapshots: Path, relative: str, at: FileAt) -> None:
        self.relative = relative
        self._fd = _open(snapshots, relative, at)
        try:
            header = _read_header(self._fd, relative)
            if digest_of(header) != at.digest:
                raise Corrupt(f"{relative}: its header is not the one that was written")
            entries: dict[str, msgspec.Raw] = msgspec.json.decode(
                header[8:], type=dict[str, msgspec.Raw]
            )
            self._spans = {
                key: msgspec.json.decode(raw, type=_Span).data_offsets
                for key, raw in entries.items()
                if key != "__metadata__"
            }
            self._start = len(header)
        except BaseException:
            self.close()
            raise

    def read(
        self,
        name: str,
        tensor: TensorAt,
        into: bytearray | memoryview | None,
        *,
        mapped: bool = False,
    ) -> None:
        """Read one tensor's bytes, into a buffer of its size or only past the check. `mapped`: past
        the check without a copy of them; what cannot be read ends the process then (SIGBUS)."""
        if tensor.key not in self._spans:
            raise Corrupt(f"{self.relative}: no tensor {tensor.key}")
        begin, end = self._spans[tensor.key]
        hasher = blake3()
        place = end - begin if mapped and into is None else 0
        if place:
            hasher.update(self._map[self._start + begin : self._start + end])
        while begin + place < end:
            want = min(CHUNK_BYTES, end - begin - place)
            if into is not None:
                view = memoryview(into)[place : place + want]
            else:
                view = self._scratch[:want]
            got = os.preadv(self._fd, [view], self._start + begin + place)
            if got == 0:
                raise Corrupt(f"{self.relative}: {name} is cut short")
            hasher.update(view[:got])
            place += got
        if "blake3:" + hasher.hexdigest() != tensor.digest:
            raise Corrupt(
                f"{self.relative}: the bytes of {name} are not the ones that were written"
            )

    @functools.cached_property
    def _map(self) -> memoryview:
        mapped = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        return memoryview(mapped)

    @functools.cached_property
    def _scratch(self) -> memoryview:
        """One for all tensors, as large as they need: fresh pages cost more than the hashing."""
        largest = max((end - begin for begin, end in self._spans.values()), default=0)
        return memoryview(bytearray(min(CHUNK_BYTES, largest)))

    def size_of(self, tensor: TensorAt) -> int:
        if tensor.key not in self._spans:
            raise Corrupt(f"{self.relative}: no tensor {tensor.key}")
        begin, end = self._spans[tensor.key]
        return end - begin

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(snapshots: Path, relative: str, at: FileAt) -> int:
    try:
        fd = open_regular(snapshots, relative)
    except FileNotFoundError:
        raise Corrupt(f"{relative} is missing") from None
    size = os.fstat(fd).st_size
    if size != at.bytes:
        os.close(fd)
        raise Corrupt(f"{relative} has {size} bytes, not the {at.bytes} that were written")
    return fd


def read_plain(snapshots: Path, relative: str, at: FileAt) -> bytes:
    """A rank's msgpack file, checked. Raises as `Shard`."""
    if at.bytes > MAX_PLAIN_BYTES:
        raise Corrupt(f"{relative}: {at.bytes} bytes are more than a plain state may have")
    with os.fdopen(_open(snapshots, relative, at), "rb") as file:
        data = file.read(at.bytes + 1)
    if digest_of(data) != at.digest:
        raise Corrupt(f"{relative}: its bytes are not the ones that were written")
    return data


def verify_files(
    snapshots: Path,
    files: Mapping[str, FileAt],
    tensors: Iterable[tuple[str, TensorAt]],
    *,
    mapped: bool = False,
) -> None:
    """Read everything and compare every digest. Raises as `Shard`, at the first difference.
    `mapped`: as for `Shard.read`."""
    by_file: dict[str, dict[tuple[str, str], tuple[str, TensorAt]]] = {}
    for name, tensor in tensors:
        by_file.setdefault(tensor.file, {})[tensor.key, tensor.digest] = (name, tensor)
    for relative, at in sorted(files.items()):
        if relative.endswith(".msgpack"):
            read_plain(snapshots, relative, at)
            continue
        with Shard(snapshots, relative, at) as shard:
            for name, tensor in by_file.get(relative, {}).values():
                shard.read(name, tensor, None, mapped=mapped)
