"""Safetensors files that somebody else wrote: where their tensors lie, read without torch.

Owns the file's header; everything in it is hostile until checked here. Our own shards, whose
digests are known, are `shards`'.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from walrecover.errors import Corrupt

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
CHUNK_BYTES = 4 << 20

_TYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


class Place(NamedTuple):
    """Where a tensor's bytes lie in its file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def places(path: Path) -> dict[str, Place]:
    """The tensors of a file. Raises Corrupt, saying what is wrong, or OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise Corrupt(f"{path}: its header says {length} bytes, the file has {size}")
        header = file.read(length)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(item, type=_Entry) for name, item in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{path}: its header cannot be read: {error}") from None
    return {name: _place(path, name, e, 8 + length, size) for name, e in entries.items()}


def _place(path: Path, name: str, entry: _Entry, start: int, size: int) -> Place:
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= size - start:
        raise Corrupt(f"{path}: {name} lies beyond the file's end: it is cut short")
    dtype, width = _TYPES.get(entry.dtype, ("", 0))
    if not dtype:
        raise Corrupt(f"{path}: {name} is a {entry.dtype}, which this release does not know")
    if any(n < 0 for n in entry.shape) or end - begin != width * math.prod(entry.shape):
        raise Corrupt(f"{path}: {name} has {end - begin} bytes, which is not its shape's number")
    return Place(dtype, entry.shape, start + begin, end - begin)


def chunks(path: Path, place: Place) -> Iterator[bytes]:
    """The bytes of a tensor. Raises Corrupt where the file ends before it does."""
    with path.open("rb") as file:
        file.seek(place.offset)
        left = place.nbytes
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise Corrupt(f"{path}: it became shorter while it was read")
            left -= len(chunk)
            yield chunk


def digest(path: Path, place: Place) -> str:
    hasher = blake3()
    for chunk in chunks(path, place):
        hasher.update(chunk)
    return f"blake3:{hasher.hexdigest()}"
