"""Which steps are captured: a pure function of the step and of what was announced ahead."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.errors import BadInput
from walrecover.pace import Every, Pace, Rate, choose, is_due, optimum, parse, parse_memory


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


@pytest.mark.parametrize(("text", "steps"), [("1step", 1), ("10steps", 10), (" 3 steps ", 3)])
def test_captures_in_memory_are_paced_by_steps(text: str, steps: int) -> None:
    assert parse_memory(text) == steps


@pytest.mark.parametrize("text", ["", "1", "30s", "0steps", "1.5steps", "auto", "-1step"])
def test_and_by_nothing_else(text: str) -> None:
    with pytest.raises(BadInput, match="give a number of steps, such as 1step or 10steps"):
        parse_memory(text)


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


def test_auto_is_the_default_until_failures_are_known() -> None:
    assert parse("auto") == Every(None, 30.0, auto=True)
    assert not parse("30s").auto


MINUTE = 60.0


@pytest.mark.parametrize(
    ("between", "interval"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)], ids=["24h", "6h", "15min"]
)
def test_the_optimum_is_what_daly_published(between: float, interval: float) -> None:
    """His figures 3 to 5: a dump of 5 minutes, and three mean times between failures."""
    found = optimum(5 * MINUTE, between * MINUTE) / MINUTE
    assert found == pytest.approx(interval, rel=0.01)


@given(st.floats(1e-4, 10.0), st.floats(1.0, 1e7))
def test_no_other_interval_loses_noticeably_less(cost: float, between: float) -> None:
    """Against his exact model of the time that a step of work takes, failures being exponential."""

    def price(interval: float) -> float:
        return between * math.expm1(min(700.0, (interval + cost) / between)) / interval

    best = optimum(cost, between)
    if cost >= between / 2:
        return  # no pace is of use there
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert price(best) <= price(best * factor) * (1 + 1e-6)


def test_where_a_capture_costs_more_than_it_can_save_one_in_a_failure_is_left() -> None:
    assert optimum(9.0, 4.0) == 4.0
    assert optimum(1.0, 0.0) == 0.0


def test_a_rate_is_known_from_the_first_failure_on() -> None:
    assert Rate(0, 3600.0).between(60.0) is None
    assert Rate(4, 100.0).between() == 25.0
    assert Rate(4, 100.0).between(20.0) == 30.0
