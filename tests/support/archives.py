"""An archive taken apart and put together again, changed: what a person who means harm would do."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import zstandard

Members = list[tuple[tarfile.TarInfo, bytes]]


def read(file: Path) -> Members:
    with (
        zstandard.ZstdDecompressor().stream_reader(io.BytesIO(file.read_bytes())) as frame,
        tarfile.open(fileobj=frame, mode="r|") as tar,
    ):
        found = []
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            found.append((member, content.read()))
        return found


def pack(
    members: Iterable[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return compress(out.getvalue())


def compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.type, found.size, found.linkname = kind, len(data), link
    return found, data


def summed(members: Members) -> Members:
    """With sums that fit, as a forger would make them."""
    rest = [(m, d) for m, d in members if not m.name.endswith("/SHA256SUMS")]
    top = rest[0][0].name.partition("/")[0]
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {found.name.partition('/')[2]}\n"
        for found, data in rest
    ]
    return [*rest, member(f"{top}/SHA256SUMS", "".join(lines).encode())]


def change(file: Path, how: Callable[[Members], Members]) -> None:
    file.write_bytes(pack(how(read(file))))
