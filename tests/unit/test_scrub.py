"""What a scrubber reads next, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.protocol import reference
from walrecover.scrub import LOOK_SECONDS, Item, Reading, Turn, next_turn

DAY = 86400.0
ITEMS = [Item("r", reference(step, 1), float(step), newest=step == 3) for step in (1, 2, 3, 4)]


def test_what_was_never_read_comes_first_the_next_recovery_point_before_all() -> None:
    readings = {ITEMS[0].key: Reading(0.0)}
    order = []
    while (item := next_turn(ITEMS, readings, 50.0, DAY).item) is not None:
        order.append(item.ref.step)
        readings[item.key] = Reading(50.0)
    assert order == [3, 4, 2]


def test_then_what_was_read_longest_ago_once_it_is_due() -> None:
    readings = {item.key: Reading(1000.0 + n) for n, item in enumerate(ITEMS)}
    assert next_turn(ITEMS, readings, 1000.0 + DAY, DAY) == Turn(ITEMS[0])
    assert next_turn(ITEMS, readings, 990.0 + DAY, DAY) == Turn(None, 10.0)
    assert next_turn(ITEMS, readings, 1010.0, DAY) == Turn(None, LOOK_SECONDS)


def test_a_time_that_lies_ahead_is_due() -> None:
    readings = {item.key: Reading(1000.0) for item in ITEMS} | {ITEMS[2].key: Reading(9e9)}
    assert next_turn(ITEMS, readings, 1010.0, DAY) == Turn(ITEMS[2])


def test_with_nothing_to_read_it_looks_again() -> None:
    assert next_turn([], {}, 0.0, DAY) == Turn(None, LOOK_SECONDS)


@given(
    st.lists(st.floats(0.1, 50.0), min_size=1, max_size=30),
    st.dictionaries(st.sampled_from(ITEMS), st.floats(0.0, 2000.0)),
)
def test_everything_is_read_once_in_a_cycle(takes: list[float], before: dict[Item, float]) -> None:
    """However long each reading takes, and whenever the last ones were."""
    cycle, now = 300.0, 1000.0
    readings = {item.key: Reading(at) for item, at in before.items()}
    seen: set[str] = set()
    for number in range(400):
        item, wait = next_turn(ITEMS, readings, now, cycle)
        now += takes[number % len(takes)] if item else wait
        if item:
            readings[item.key] = Reading(now)
            seen.add(item.key)
        if now > 1000.0 + 2 * cycle:
            break
    assert seen == {item.key for item in ITEMS}
