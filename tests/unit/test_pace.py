"""Which steps are captured: a pure function of the step and of what was announced ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.errors import BadInput
from walrecover.pace import Every, Pace, choose, is_due, parse


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("30s", Every(None, 30.0)),
        ("0.5s", Every(None, 0.5)),
        (" 5 m ", Every(None, 300.0)),
        ("2h", Every(None, 7200.0)),
        ("100steps", Every(100, None)),
        ("1 step", Every(1, None)),
    ],
)
def test_a_number_and_its_unit(text: str, every: Every) -> None:
    assert parse(text) == every


@pytest.mark.parametrize(
    "text", ["", "30", "s", "30 seconds", "-1s", "0s", "0steps", "1.5steps", "1e3s", "30s 5m"]
)
def test_what_has_no_meaning_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--every"):
        parse(text)


def test_powers_of_two_while_no_pace_is_known() -> None:
    assert [n for n in range(1, 100) if is_due(n, [])] == [1, 2, 4, 8, 16, 32, 64]


def test_the_newest_pace_whose_step_has_come_counts() -> None:
    paces = [Pace(5, 3), Pace(20, 10)]
    due = [n for n in range(1, 45) if is_due(n, paces)]
    assert due == [1, 2, 4, 6, 9, 12, 15, 18, 20, 30, 40]


@given(
    st.lists(st.builds(Pace, st.integers(0, 60), st.integers(1, 20)), max_size=4),
    st.integers(1, 60),
)
def test_what_is_announced_for_later_changes_nothing_now(paces: list[Pace], step: int) -> None:
    ordered = sorted(paces)
    assert is_due(step, ordered) == is_due(step, [p for p in ordered if p.from_step <= step])


@given(st.floats(1e-6, 1e4), st.floats(1e-3, 1e6))
def test_the_chosen_pace_comes_near_the_wanted_time(step: float, wanted: float) -> None:
    chosen = choose(step, Every(None, wanted))
    assert chosen >= 1
    assert chosen == 1 or abs(chosen * step - wanted) <= step / 2 * (1 + 1e-9)


def test_steps_are_taken_as_given() -> None:
    assert choose(123.0, Every(7, None)) == 7
    assert choose(0.0, Every(None, 1.0)) == 10**9
