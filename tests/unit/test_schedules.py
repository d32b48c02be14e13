"""Learning rates and step counts after a restore: what must fit, said with both values."""

from __future__ import annotations

from typing import Any

import pytest

from walrecover.schedules import Schedule, disagreements

SAVED = Schedule("scheduler", "optimizer", (0.25, 0.5), (0.25, 0.5), 7, 2)


def said(saved: Schedule | None = SAVED, **now: Any) -> list[str]:
    return list(disagreements(SAVED._replace(**now), saved))


def test_what_is_as_it_was_saved_fits() -> None:
    assert said() == []
    assert said(saved=None) == []


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (
            {"steps": 0},
            "scheduler stands at schedule step 0, and stood at 7 when the snapshot was taken",
        ),
        (
            {"rates": (0.25, 1.0), "last": (0.25, 1.0)},
            "the learning rate of optimizer is 0.25, 1.0, and was 0.25, 0.5 when the snapshot was "
            "taken",
        ),
        (
            {"groups": 1},
            "scheduler has rates for 1 parameter groups, and optimizer has 2",
        ),
        (
            {"last": (0.5, 1.0)},
            "the learning rate of optimizer is 0.25, 0.5, and scheduler has set 0.5, 1.0",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_both_values(now: dict[str, Any], sentence: str) -> None:
    assert said(**now) == [sentence]


def test_a_scheduler_that_the_snapshot_lacks_is_held_against_its_optimizer() -> None:
    (found,) = said(saved=None, last=(0.5, 1.0), steps=0)
    assert "scheduler has set 0.5, 1.0" in found


def test_rates_that_the_script_sets_by_hand_beside_its_scheduler_are_its_own_affair() -> None:
    by_hand = SAVED._replace(rates=(0.01, 0.01))
    assert list(disagreements(by_hand, by_hand)) == []
    (found,) = disagreements(SAVED, by_hand)
    assert "is 0.25, 0.5, and was 0.01, 0.01" in found


def test_one_bit_is_another_rate() -> None:
    (found,) = said(rates=(0.25, 0.5000000000000001), last=(0.25, 0.5000000000000001))
    assert "0.5000000000000001" in found
