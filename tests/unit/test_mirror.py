"""The objects of a vault: names, listings, what may go."""

from __future__ import annotations

import pytest

from tests.support.protocol import attempt, committed, reference, retirement
from walrecover import mirror
from walrecover.errors import Corrupt
from walrecover.mirror import Segment

STREAM = "a1-00000001/rank-0"


def segment(first: int, last: int) -> Segment:
    return Segment(STREAM, first, last, mirror.segment_name(STREAM, first, last))


def test_entries_count_up_to_the_first_gap() -> None:
    names = [mirror.entry_name(number) for number in (1, 2, 3, 5)]
    assert mirror.entries_there(names) == 3
    assert mirror.entries_there([]) == mirror.entries_there(names[1:]) == 0
    assert mirror.entries_there(["sequence/1.json", "sequence/00000001.json.x"]) == 0


def test_segments_are_read_off_their_names_in_order() -> None:
    some = [segment(5, 9), segment(1, 4), segment(1, 6)]
    found = mirror.segments([one.name for one in some])
    assert found == {STREAM: [segment(1, 6), segment(1, 4), segment(5, 9)]}
    for name in (
        "journal/a1-0/rank-0/00000000-00000004.msgpack",
        "journal/a1-0/rank-0/00000005-00000004.msgpack",
        "journal/../rank-0/00000001-00000004.msgpack",
        "journal/a1-0/../00000001-00000004.msgpack",
        "journal/a1-0/x/y/00000001-00000004.msgpack",
    ):
        assert mirror.segments([name]) == {}


def test_a_stream_is_there_up_to_the_first_gap() -> None:
    assert mirror.reached([]) == 0
    assert mirror.reached([segment(2, 9)]) == 0
    assert mirror.reached([segment(1, 4), segment(3, 9), segment(10, 10)]) == 10
    assert mirror.reached([segment(1, 4), segment(6, 9)]) == 4
    assert mirror.reached([segment(1, 9), segment(2, 3), segment(10, 12)]) == 12


def test_a_segment_holds_what_its_name_says() -> None:
    data = mirror.encode_segment([b"a", b"b"])
    assert mirror.decode_segment(data, segment(3, 4)) == [b"a", b"b"]
    with pytest.raises(Corrupt, match="holds 2 events"):
        mirror.decode_segment(data, segment(3, 5))
    for other in (b"", data[:-1], data + b"x", b"\x91\x01", b"\xc0"):
        with pytest.raises(Corrupt):
            mirror.decode_segment(other, segment(3, 4))


def test_only_what_is_retired_and_dead_goes() -> None:
    old, shared, kept = reference(1, 1), reference(2, 1), reference(3, 1)
    entries = [
        attempt(1), committed(1, 1), committed(2, 1), committed(3, 1), retirement(1, old, shared),
    ]  # fmt: skip
    there = [
        f"snapshots/{ref.name}/{name}" for ref in (old, shared, kept) for name in ("a", "b")
    ] + ["sequence/00000001.json", "snapshots/step-00000009.a1-00000001/a", "journal/x"]
    alive = {f"snapshots/{kept.name}/a", f"snapshots/{kept.name}/b", f"snapshots/{shared.name}/a"}
    assert mirror.to_delete(entries, there, alive) == [
        f"snapshots/{old.name}/a", f"snapshots/{old.name}/b", f"snapshots/{shared.name}/b",
    ]  # fmt: skip
    assert mirror.to_delete(entries[:-1], there, alive) == []
