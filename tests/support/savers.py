"""Checkpoint files without torch, and the ways in which scripts write them."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save


def zipped(version: int, size: int = 3000) -> bytes:
    """As torch.save writes it: members that are not compressed, and a directory at the end."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (
            ("model/data.pkl", str(version)),
            ("model/data/0", random.Random(version).randbytes(size)),
            ("model/version", "3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name), data)  # of no time: equal bytes each time
    return buffer.getvalue()


def tensors(version: int, size: int = 3000) -> bytes:
    return save({"w": np.full(size // 8, version, np.float64), "b": np.ones(3)})


PIECES = int(os.environ.get("PIECES", "5"))


def in_place(path: Path, data: bytes) -> Iterator[int]:
    """As torch.save(…, path) does: the file is emptied, then written. Yields after every event."""
    with open(path, "wb", buffering=0) as file:
        yield 0
        step = -(-len(data) // PIECES)
        for start in range(0, len(data), step):
            file.write(data[start : start + step])
            yield start + step
    yield len(data)


def renamed(path: Path, data: bytes) -> Iterator[int]:
    """As safetensors and careful savers do: under another name, then renamed over."""
    temporary = path.with_name(f"{path.name}.tmp")
    yield from in_place(temporary, data)
    temporary.replace(path)
    yield len(data)


def removed_first(path: Path, data: bytes) -> Iterator[int]:
    """As some frameworks do: between the two there is no file."""
    temporary = path.with_name(f"{path.name}.tmp")
    yield from in_place(temporary, data)
    if path.exists():
        path.unlink()
    yield len(data)
    os.rename(temporary, path)
    yield len(data)


Saver = Callable[[Path, bytes], Iterator[int]]
SAVERS: dict[str, Saver] = {
    "in place": in_place,
    "renamed": renamed,
    "removed first": removed_first,
}


def whole_after_each(saver: Saver, path: Path, contents: Callable[[int], bytes]) -> list[bool]:
    """Of every event of saving version 2 over version 1: is version 2 whole after it?"""
    complete(saver(path, contents(1)))
    return [path.exists() and path.read_bytes() == contents(2) for _ in saver(path, contents(2))]


def contents_of(name: str) -> Callable[[int], bytes]:
    return tensors if name.endswith(".safetensors") else zipped


def complete(events: Iterator[int]) -> None:
    for _ in events:
        pass
