"""The rule by which losses are bad."""

from __future__ import annotations

import math
import random

import pytest

from walrecover.losses import ENOUGH, PATIENCE, Finding, Watch, judge


def course(losses: list[float], name: str = "loss") -> Finding | None:
    watch = Watch()
    for step, loss in enumerate(losses, 1):
        watch.take(step, {name: loss})
    return watch.found


def falling(count: int, seed: int = 1) -> list[float]:
    """As training goes: from 4 towards 1, with noise."""
    draw = random.Random(seed)
    return [1.0 + 3.0 * math.exp(-n / 200) + draw.gauss(0, 0.1) for n in range(count)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_a_loss_that_is_not_finite_is_bad_at_once(name: str, bad: float) -> None:
    assert course([1.0, 2.0, bad, 1.0], name) == (3, f"{name} is {bad} at step 3")


def test_a_name_gives_no_orders_to_a_terminal() -> None:
    assert course([math.nan], "\x1b[2Jloss") == (1, "'\\x1b[2Jloss' is nan at step 1")


def test_other_scalars_may_be_what_they_like() -> None:
    """A gradient norm is infinite at every step that a GradScaler skips."""
    assert course([1.0, math.inf, math.nan], "grad_norm") is None
    assert course([1.0, 2.0, 1e9] * 30, "val_loss") is None


@pytest.mark.parametrize("seed", range(20))
def test_training_as_it_goes_is_not_bad(seed: int) -> None:
    assert course(falling(2000, seed)) is None


def test_a_loss_that_leaves_its_course_is_bad_from_where_it_left() -> None:
    losses = [*falling(300), 30.0, 35.0, 40.0, 50.0]
    found = course(losses)
    assert found is not None and found.step == 301
    assert found.reason.startswith("the loss rose to 40 from step 301 on, where its median was 1")


def test_one_wild_batch_is_no_spike() -> None:
    wild = [30.0] * (PATIENCE - 1)
    assert course(falling(100) + wild + falling(100) + wild + falling(100)) is None


def test_nothing_is_a_spike_before_there_is_a_course() -> None:
    assert course([1.0] * (ENOUGH - 1) + [50.0] * 2) is None
    assert course([1.0] * ENOUGH + [50.0] * PATIENCE) is not None


def test_losses_that_are_zero_or_negative_have_a_course_as_well() -> None:
    assert course([0.0] * 100 + [5.0] * 10) is None
    found = course([-100.0] * 100 + [5.0] * 10)
    assert found is not None and found.step == 101


def test_the_first_over_all_ranks_counts_and_their_streams_do_not_mix() -> None:
    one = [(0, step, {"loss": 1.0}) for step in range(1, 9)]
    other = [(1, step, {"loss": math.nan if step >= 5 else 1.0}) for step in range(1, 9)]
    assert judge([*one, *other]) == (5, "loss is nan at step 5")
    assert judge(one) is None and judge([]) is None
    apart = [(rank, step, {"loss": 1.0 + 99 * rank}) for rank in (0, 1) for step in range(1, 99)]
    assert judge(apart) is None


def test_scalars_that_come_late_are_judged_as_the_rest() -> None:
    watch = Watch()
    watch.take(1, {"lr": 0.1})
    assert watch.take(2, {}) is None
    assert watch.take(1, {"loss": math.nan}) == (1, "loss is nan at step 1")
