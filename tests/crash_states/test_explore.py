"""Drawing and checking on hand-written operations: what counts as new, as a row, as the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.crash_states import ops
from tests.crash_states.explore import Exploration, State, explore
from tests.crash_states.handmade import DURABLE_A, PAGE, ROOT, create, in_turn, sync, write
from tests.crash_states.model import History


def states(operations: list[ops.Op]) -> Iterator[State]:
    return iter(Exploration(History(operations)))


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
    history = History(operations)
    assert [history.acks(at) for at in range(3)] == [(), ("one",), ("one",)]


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
