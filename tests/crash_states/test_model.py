"""The fault model on hand-written operations: what is legal is drawn, what is not never is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace as stamped
from pathlib import Path

from tests.crash_states import ops
from tests.crash_states.explore import Exploration, State, explore
from tests.crash_states.model import PAGE, SECTOR, History, Order

Contents = dict[str, bytes | None]
ROOT = ops.ROOT


def create(path: str, ino: int, directory: int = ROOT) -> ops.Create:
    return ops.Create(path=path, dir=directory, name=path.split("/")[-1], ino=ino)


def mkdir(path: str, ino: int, directory: int = ROOT) -> ops.Mkdir:
    return ops.Mkdir(path=path, dir=directory, name=path.split("/")[-1], ino=ino)


def unlink(path: str, ino: int, directory: int = ROOT) -> ops.Unlink:
    return ops.Unlink(path=path, dir=directory, name=path.split("/")[-1], ino=ino)


def rename(source: str, path: str, ino: int) -> ops.Rename:
    return ops.Rename(
        path=path, dir=ROOT, name=path, ino=ino, source=source, source_dir=ROOT, source_name=source
    )


def write(ino: int, offset: int, data: bytes) -> ops.Write:
    return ops.Write(ino=ino, offset=offset, data=data)


def sync(ino: int, extent: tuple[int, int] | None = None) -> ops.Sync:
    return ops.Sync(ino=ino, directory=ino == ROOT, extent=extent)


def in_turn(*operations: ops.Op) -> list[ops.Op]:
    """Each begins after the one before has returned."""
    return [stamped(op, seq=2 * at + 1, begun=2 * at) for at, op in enumerate(operations)]


def states(operations: list[ops.Op], order: Order = "any") -> Iterator[State]:
    return iter(Exploration(History(operations, order)))


def trees(
    operations: list[ops.Op], *, at: int | None = None, kill: bool | None = None,
    order: Order = "any",
) -> list[Contents]:  # fmt: skip
    """The distinct trees at one operation; after all of them if it is not given."""
    place = len(operations) if at is None else at
    found: list[Contents] = []
    for state in states(operations, order):
        tree = {path: image.data() if image else None for path, _, image in state.tree.entries}
        if state.choice.at == place and kill in (None, state.choice.kill) and tree not in found:
            found.append(tree)
    return found


def of_file(operations: list[ops.Op], path: str = "a") -> set[bytes | None]:
    """What a power cut after everything may leave in a file."""
    return {tree[path] for tree in trees(operations) if path in tree}


DURABLE_A = (create("a", 1), write(1, 0, b"o" * 2 * PAGE), sync(1), sync(ROOT))


def test_a_file_that_was_never_synced_has_any_size_and_data() -> None:
    operations = in_turn(create("a", 1), write(1, 0, b"x" * 100))
    found = trees(operations)
    expected: list[Contents] = [{}, {"a": b""}, {"a": bytes(100)}, {"a": b"x" * 100}]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_a_file_sync_keeps_data_and_not_the_name() -> None:
    operations = in_turn(create("a", 1), write(1, 0, b"x" * 100), sync(1))
    assert trees(operations) == [{"a": b"x" * 100}, {}]


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
    for data in found:
        sectors = [data[at : at + SECTOR] for at in range(0, len(data or b""), SECTOR)]
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
        {"e": None, "e/kept": b"", "e/lost": b""},
        {"e": None, "e/kept": b""},
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


def test_links_are_one_file_with_two_names(tmp_path: Path) -> None:
    link = ops.Link(
        path="b", dir=ROOT, name="b", ino=1, source="a", source_dir=ROOT, source_name="a"
    )
    operations = in_turn(*DURABLE_A, link, sync(ROOT))

    def check(state: Path, acks: tuple[str, ...]) -> str | None:
        same = (state / "b").exists() and (state / "b").samefile(state / "a")
        return None if same or "b" not in names(state) else "two files"

    assert not explore(operations, check, scratch=tmp_path).violations
    linked = next(state for state in states(operations) if len(state.tree.entries) == 2)
    copied = in_turn(*DURABLE_A, create("b", 2), write(2, 0, b"o" * 2 * PAGE), sync(2), sync(ROOT))
    assert linked.digest not in {state.digest for state in states(copied)}


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_acknowledgements_count_from_their_own_crash_on() -> None:
    operations = in_turn(create("a", 1), ops.Ack(text="one"), create("b", 2))
    heard = {state.choice.at: state.acks for state in states(operations)}
    assert heard == {0: (), 1: ("one",), 2: ("one",)}


def test_the_same_seed_draws_the_same_states() -> None:
    operations = in_turn(*DURABLE_A, write(1, 0, b"n" * 2 * PAGE), create("b", 2))

    def drawn(seed: int) -> list[str]:
        return [state.digest for state in Exploration(History(operations), seed=seed)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_rows_are_evened_out() -> None:
    """A row with one place gets as many states as one with ten, while it has any to give."""
    busy = [write(1, 0, bytes([n]) * 2 * PAGE) for n in range(1, 11)]
    operations = in_turn(*DURABLE_A, *busy, ops.Truncate(ino=1, size=PAGE))
    report = explore(operations, lambda state, acks: None, budget=600)
    assert report.checked == report.distinct == 600
    assert min(report.rows[row] for row in ("write ", "truncate ", "end")) >= 150
