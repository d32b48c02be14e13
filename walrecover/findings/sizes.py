"""Sizes that people give and manifests state."""

from __future__ import annotations

import re

import msgspec

from walrecover.errors import BadInput

UNITS = {
    **{"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
}


class _File(msgspec.Struct):
    bytes: int


class _Part(msgspec.Struct):
    files: dict[str, _File]


class _Manifest(msgspec.Struct):
    parts: tuple[_Part, ...]


def parse_size(text: str) -> int:
    """Bytes. Raises BadInput: a bare number has no unit."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    if not match or match[2].lower() not in UNITS or not float(match[1]):
        raise BadInput(f"--size {text!r}: give a number and its unit, such as 500MB or 2GiB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def of_manifest(data: bytes) -> tuple[int, int]:
    """Bytes and files of a snapshot, for an estimate: nothing is verified. Raises ValueError."""
    manifest = msgspec.json.decode(data, type=_Manifest)
    files = {path: at.bytes for part in manifest.parts for path, at in part.files.items()}
    return sum(files.values()), len(files) + len(manifest.parts) + 2
