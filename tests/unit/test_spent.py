"""What a stream says of its time, beside the same worked out from all of its events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.spent import FINE, Spent

lengths = st.floats(0.001, 5.0)


def trained(*lengths: float, base: int = 0) -> Spent:
    """Steps that took so long, one behind the other."""
    spent, at = Spent(), 100.0
    spent.begin(at)
    for step, length in enumerate(lengths, base + 1):
        at += length
        spent.complete(step, at)
    return spent


def test_training_begins_when_the_script_is_back_at_its_place() -> None:
    spent = Spent()
    spent.begin(100.0)
    spent.begin(107.0)
    spent.complete(31, 109.0)
    assert (spent.since, spent.last, spent.trained) == (107.0, 109.0, 2.0)


def test_what_stood_still_on_the_way_there_is_no_part_of_training() -> None:
    spent = Spent()
    spent.begin(100.0)
    spent.stall(103.0, 2.0, capture=True)
    spent.begin(107.0)
    spent.complete(31, 109.0)
    assert (spent.trained, spent.stalled) == (2.0, 0.0)


def test_a_resume_behind_the_first_step_moves_nothing() -> None:
    spent = trained(1.0)
    spent.begin(300.0)
    assert (spent.since, spent.last) == (100.0, 101.0)


def test_standing_still_is_no_training() -> None:
    spent = trained(1.0)
    spent.stall(101.75, 0.5, capture=True)
    spent.complete(2, 103.0)
    assert spent.stalled == 0.5
    assert spent.trained == 1.0 + 0.25 + 1.25
    assert (spent.captures, spent.capturing) == (1, 0.5)


def test_waiting_for_a_commit_is_standing_still_and_no_capture() -> None:
    spent = trained(1.0)
    spent.stall(102.0, 1.0, capture=False)
    assert (spent.stalled, spent.captures) == (1.0, 0)


def test_no_more_is_stood_still_than_has_passed() -> None:
    spent = trained(1.0)
    spent.stall(101.5, 9.0, capture=True)
    assert (spent.stalled, spent.trained) == (0.5, 1.0)


def test_a_clock_that_goes_back_adds_nothing_until_it_has_caught_up() -> None:
    spent = trained(10.0)
    spent.complete(2, 50.0)
    assert (spent.trained, spent.last) == (10.0, 110.0)
    spent.complete(3, 112.0)
    assert (spent.trained, spent.last) == (12.0, 112.0)


@given(st.lists(lengths, min_size=1, max_size=FINE + 4), st.integers(0, 30))
def test_the_first_steps_are_known_one_by_one(each: list[float], base: int) -> None:
    spent = trained(*each, base=base)
    for count in range(min(len(each), FINE) + 1):
        assert spent.through(base + count, base + len(each)) == pytest.approx(sum(each[:count]))
    assert spent.through(base - 1, base + len(each)) == 0.0
    assert spent.through(base + len(each) + 7, base + len(each)) == spent.trained


@given(st.integers(FINE, 3000), st.data())
def test_later_ones_as_well_as_the_marks_are_fine(steps: int, data: st.DataObject) -> None:
    """Between two marks time passes evenly, so no more than one gap is told wrong."""
    slow = data.draw(st.sets(st.integers(1, steps), max_size=5))
    each = [30.0 if step in slow else 1.0 for step in range(1, steps + 1)]
    spent = trained(*each)
    count = data.draw(st.integers(0, steps))
    gap = max(1, count // FINE + 1)
    true = sum(each[:count])
    assert sum(each[: max(0, count - gap)]) - 1e-6 <= spent.through(count, steps)
    assert spent.through(count, steps) <= sum(each[: count + gap]) + 1e-6
    if not slow:
        assert spent.through(count, steps) == pytest.approx(true)


def test_a_million_steps_take_a_few_hundred_marks() -> None:
    spent = Spent()
    spent.begin(1.0)
    for step in range(1, 1_000_001):
        spent.complete(step, 1.0 + step)
    assert len(spent.marks) < 300
    assert spent.through(123_456, 1_000_000) == pytest.approx(123_456)
