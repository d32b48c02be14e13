"""Plain values: where two of them differ, and how one is said in a line.

Pure. Floating-point numbers are equal only if their bits are, and types must be the same.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

bits = struct.Struct("<d").pack
ABSENT = "absent"


def first_difference(one: Any, other: Any, path: str) -> tuple[str, str, str] | None:
    """(path, one's value, the other's) of the first place where two plain values differ."""
    if type(one) is not type(other):
        return path, shown(one), shown(other)
    if isinstance(one, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            where = f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"
            if key not in one or key not in other:
                return where, _there(key, one), _there(key, other)
            if found := first_difference(one[key], other[key], where):
                return found
        return None
    if isinstance(one, list | tuple):
        for index, (mine, its) in enumerate(zip(one, other, strict=False)):
            if found := first_difference(mine, its, f"{path}[{index}]"):
                return found
        if len(one) != len(other):
            return f"the length of {path}", str(len(one)), str(len(other))
        return None
    same = bits(one) == bits(other) if isinstance(one, float) else one == other
    return None if same else (path, shown(one), shown(other))


def _there(key: Any, value: Mapping[Any, Any]) -> str:
    return shown(value[key]) if key in value else ABSENT


def shown(value: Any) -> str:
    """A value for people: short, and with its bits where they are all that tells it apart."""
    if isinstance(value, float) and value != value:
        return f"nan ({bits(value).hex()})"
    if isinstance(value, bytes) and len(value) > 16:
        return f"{len(value)} bytes, blake3:{blake3(value).hexdigest()[:16]}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
