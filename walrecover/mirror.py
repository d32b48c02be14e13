"""The objects of a run in a vault: their names, and what of them is to be sent or to go.

Owns specs/20-archive.md's naming of a vault and the decisions over listings; sends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from walrecover import entries as model
from walrecover.entries import Entry
from walrecover.errors import Corrupt

SEGMENT_EVENTS = 4096
MAX_SEGMENT_BYTES = 256 << 20
_ENTRY = re.compile(r"sequence/([0-9]{8}|[1-9][0-9]{8,})\.json")
_SEGMENT = re.compile(
    r"journal/(a(?:0|[1-9][0-9]{0,9})-[0-9a-z]{1,32}/[A-Za-z0-9][A-Za-z0-9_.-]{0,63})/"
    r"([0-9]{8,})-([0-9]{8,})\.msgpack",
    re.ASCII,
)


class Segment(NamedTuple):
    """Events `first` to `last` of a stream (`<attempt>/<writer>`), in the object `name`."""

    stream: str
    first: int
    last: int
    name: str


def entry_name(number: int) -> str:
    return f"sequence/{number:08d}.json"


def segment_name(stream: str, first: int, last: int) -> str:
    return f"journal/{stream}/{first:08d}-{last:08d}.msgpack"


def entries_there(names: Iterable[str]) -> int:
    """How many entries there are from the first on without a gap."""
    numbers = {int(match[1]) for match in map(_ENTRY.fullmatch, names) if match}
    count = 0
    while count + 1 in numbers:
        count += 1
    return count


def segments(names: Iterable[str]) -> dict[str, list[Segment]]:
    """By stream, in the order of their events."""
    found: dict[str, list[Segment]] = {}
    for match in map(_SEGMENT.fullmatch, names):
        if match and 0 < int(match[2]) <= int(match[3]):
            one = Segment(match[1], int(match[2]), int(match[3]), match[0])
            found.setdefault(one.stream, []).append(one)
    return {
        stream: sorted(some, key=lambda one: (one.first, -one.last))
        for stream, some in found.items()
    }


def reached(some: Sequence[Segment]) -> int:
    """The last event up to which these segments, in order, leave no gap."""
    last = 0
    for one in some:
        if one.first > last + 1:
            break
        last = max(last, one.last)
    return last


def encode_segment(envelopes: Sequence[bytes]) -> bytes:
    return msgspec.msgpack.encode(envelopes)


def decode_segment(data: bytes, segment: Segment) -> list[bytes]:
    """Raises Corrupt; what an envelope holds is checked when the stream is read."""
    try:
        found = msgspec.msgpack.decode(data, type=list[bytes])
    except msgspec.DecodeError as error:
        raise Corrupt(f"{segment.name}: {error}") from None
    if len(found) != segment.last - segment.first + 1:
        raise Corrupt(f"{segment.name} holds {len(found)} events")
    return found


def to_delete(entries: Sequence[Entry], there: Iterable[str], alive: Iterable[str]) -> list[str]:
    """Objects of retired snapshots that no live one lists. `alive`: what lives, by name.

    What belongs to no snapshot of these entries is left alone: a newer one may be on its way.
    """
    void = model.retired(entries)
    over = {c.snapshot.name for c in model.commits(entries) if c.snapshot.manifest in void}
    kept = set(alive)
    return sorted(
        name
        for name in there
        if name.startswith("snapshots/") and name.split("/")[1] in over and name not in kept
    )


def is_there(there: Mapping[str, int], name: str, size: int) -> bool:
    return there.get(name) == size
