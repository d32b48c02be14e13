"""The fault model on hand-written operations: what is legal is drawn, what is not never is."""

from __future__ import annotations

import random
from itertools import islice

from tests.crash_states import ops
from tests.crash_states.choices import Point
from tests.crash_states.handmade import (
    DURABLE_A,
    ROOT,
    create,
    in_turn,
    mkdir,
    rename,
    sync,
    unlink,
    write,
)
from tests.crash_states.model import PAGE, SECTOR, History, Order
from tests.crash_states.rebuild import Builder

Contents = dict[str, bytes | None]


def trees(
    operations: list[ops.Op], *, at: int | None = None, kill: bool = False, order: Order = "any"
) -> list[Contents]:
    """The distinct trees at one operation, by default after all; of a kill or of a power cut."""
    history = History(operations, order)
    builder, found = Builder(history), list[Contents]()
    point = Point(history, len(operations) if at is None else at)
    for choice in islice(point.choices(random.Random(0)), 2000):
        if choice is None or choice.kill != kill:
            continue
        entries = builder.tree(choice).entries
        tree = {path: image.data() if image else None for path, _, image in entries}
        if tree not in found:
            found.append(tree)
    return found


def of_file(operations: list[ops.Op], path: str = "a") -> set[bytes | None]:
    """What a power cut after everything may leave in a file."""
    return {tree[path] for tree in trees(operations) if path in tree}


def test_a_file_that_was_never_synced_has_any_size_and_data() -> None:
    operations = in_turn(create("a", 1), write(1, 0, b"x" * 100))
    found = trees(operations)
    expected: list[Contents] = [{}, {"a": b""}, {"a": bytes(100)}, {"a": b"x" * 100}]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_a_file_sync_keeps_data_and_not_the_name() -> None:
    operations = in_turn(create("a", 1), write(1, 0, b"x" * 100), sync(1))
    assert trees(operations) == [{}, {"a": b"x" * 100}]


def test_a_directory_sync_keeps_the_name_and_not_the_data() -> None:
    operations = in_turn(create("a", 1), write(1, 0, b"x" * 100), sync(ROOT))
    assert of_file(operations) == {b"", bytes(100), b"x" * 100}
    assert {} not in trees(operations)


def test_a_sync_under_way_promises_nothing() -> None:
    operations = in_turn(create("a", 1), write(1, 0, b"x" * 100), sync(ROOT))
    assert {} in trees(operations, at=2)


def test_writes_to_one_sector_reach_the_disk_in_order() -> None:
    operations = in_turn(
        create("a", 1), sync(ROOT), sync(1), write(1, 0, b"aaaa"), write(1, 4, b"bbbb")
    )
    found = of_file(operations)
    assert bytes(4) + b"bbbb" not in found
    assert {b"", b"aaaa", b"aaaabbbb", b"aaaa" + bytes(4), bytes(8), bytes(4)} == found


def test_pages_reach_the_disk_in_any_order_and_tear_at_sectors() -> None:
    operations = in_turn(*DURABLE_A, write(1, 0, b"n" * 2 * PAGE))
    found = of_file(operations)
    assert {b"n" * PAGE + b"o" * PAGE, b"o" * PAGE + b"n" * PAGE} <= found
    assert b"n" * SECTOR + b"o" * (2 * PAGE - SECTOR) in found
    for data in filter(None, found):
        sectors = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
        assert all(len(set(sector)) == 1 for sector in sectors)


def test_a_ranged_sync_keeps_its_pages_and_the_size_only() -> None:
    operations = in_turn(
        *DURABLE_A,
        write(1, 0, b"n" * PAGE),
        write(1, PAGE, b"d" * 2 * PAGE),
        sync(1, extent=(PAGE, 3 * PAGE)),
    )
    found = of_file(operations)
    assert {data[PAGE:] for data in found if data} == {b"d" * 2 * PAGE}
    assert len(found) > 2


def test_a_truncation_shows_no_bytes_beyond_it_again() -> None:
    operations = in_turn(*DURABLE_A, ops.Truncate(ino=1, size=10), ops.Truncate(ino=1, size=600))
    found = of_file(operations)
    assert {b"o" * 2 * PAGE, b"o" * 10, b"o" * 10 + bytes(590)} <= found
    assert {len(data) for data in found if data is not None} == {10, 600, 2 * PAGE}


def test_a_rename_is_atomic() -> None:
    operations = in_turn(
        *DURABLE_A, create("b", 2), write(2, 0, b"new"), sync(2), rename("b", "a", 2)
    )
    assert of_file(operations) == {b"o" * 2 * PAGE, b"new"}
    assert all("a" in tree for tree in trees(operations))


def test_names_keep_no_order_unless_ordered() -> None:
    operations = in_turn(create("a", 1), create("b", 2))
    both: list[Contents] = [{"a": b"", "b": b""}, {"a": b""}, {}]
    assert sorted(map(repr, trees(operations, order="ordered"))) == sorted(map(repr, both))
    assert {"b": b""} in trees(operations)


def test_one_durable_name_keeps_all_before_it_if_ordered() -> None:
    operations = in_turn(
        create("a", 1), mkdir("d", 2), create("d/b", 3, directory=2), sync(2), create("c", 4)
    )
    assert {} in trees(operations)
    assert all({"a", "d", "d/b"} <= tree.keys() for tree in trees(operations, order="ordered"))


def test_a_directory_takes_its_durable_names_along() -> None:
    operations = in_turn(
        mkdir("d", 1),
        create("d/kept", 2, directory=1),
        sync(1),
        create("d/lost", 3, directory=1),
        rename("d", "e", 1),
        sync(ROOT),
    )
    assert trees(operations) == [
        {"e": None, "e/kept": b""},
        {"e": None, "e/kept": b"", "e/lost": b""},
    ]


def test_a_directory_stands_in_one_place() -> None:
    """Where the first of two renames is missing, its source is not left beside the target."""
    operations = in_turn(mkdir("a", 1), sync(ROOT), rename("a", "b", 1), rename("b", "c", 1))
    assert sorted(map(sorted, trees(operations))) == [["a"], ["b"], ["c"]]


def test_a_removed_name_may_come_back_and_goes_for_good_once_synced() -> None:
    operations = in_turn(*DURABLE_A, unlink("a", 1))
    assert sorted(map(sorted, trees(operations))) == [[], ["a"]]
    assert trees(in_turn(*DURABLE_A, unlink("a", 1), sync(ROOT))) == [{}]


def test_a_sync_does_not_cover_what_overlapped_it() -> None:
    operations = in_turn(create("a", 1), sync(ROOT))
    overlapping = [
        *operations,
        ops.Write(seq=11, begun=10, ino=1, offset=0, data=b"covered"),
        ops.Write(seq=14, begun=12, ino=1, offset=PAGE, data=b"overlaps"),
        ops.Sync(seq=15, begun=13, ino=1),
    ]
    found = of_file(overlapping)
    assert {b"covered", b"covered" + bytes(PAGE - 7) + b"overlaps"} <= found
    assert all(data and data.startswith(b"covered") for data in found)


def test_what_was_under_way_elsewhere_may_be_there_too() -> None:
    operations = [
        ops.Create(seq=2, begun=0, path="a", dir=ROOT, name="a", ino=1),
        ops.Sync(seq=9, begun=3, ino=ROOT, directory=True),
        ops.Create(seq=12, begun=8, path="b", dir=ROOT, name="b", ino=2),
    ]
    assert {"b": b""} in trees(operations, at=1)
    assert all("a" in tree for tree in trees(operations, at=2))


def test_sync_of_everything() -> None:
    operations = in_turn(
        mkdir("d", 1), create("d/a", 2, directory=1), write(2, 0, b"x"), sync(ops.EVERYTHING)
    )
    assert trees(operations) == [{"d": None, "d/a": b"x"}]


def test_a_kill_keeps_all_that_returned_and_may_stop_a_write_at_a_page() -> None:
    operations = in_turn(create("a", 1), write(1, 100, b"x" * 2 * PAGE), create("b", 2))
    assert trees(operations, at=1, kill=True) == [
        {"a": bytes(100) + b"x" * 2 * PAGE},
        {"a": b""},
        {"a": bytes(100) + b"x" * (PAGE - 100)},
        {"a": bytes(100) + b"x" * (2 * PAGE - 100)},
    ]
    assert trees(operations, at=2, kill=True) == [
        {"a": bytes(100) + b"x" * 2 * PAGE, "b": b""},
        {"a": bytes(100) + b"x" * 2 * PAGE},
    ]
