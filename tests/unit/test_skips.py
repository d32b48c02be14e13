"""What is left out: whole batches, and only what no step has consumed."""

from __future__ import annotations

import pytest

from tests.support.reading import BATCH, LENGTH, OPENED, RANKS, STEPS, consumed, step_of
from walrecover.consumed import Consumed
from walrecover.entries import Skip
from walrecover.errors import BadInput
from walrecover.events import DataOpened, PassEnded, StepCompleted
from walrecover.skips import Standing, between, following, merged, of_pass, parse, placed, told


def standing(steps: int, *more: DataOpened) -> Standing:
    """A rank's stream after the other, as they are read."""
    found = Standing()
    for rank in range(RANKS):
        for event in (OPENED, *more, *(step_of(step, rank) for step in range(1, steps + 1))):
            found.take(event)
    return found


def test_ranges_are_merged() -> None:
    assert merged([(4, 8), (0, 2), (7, 9), (2, 3), (5, 5)]) == ((0, 3), (4, 9))
    assert merged([]) == ()


def test_a_pass_has_its_own_skips() -> None:
    skips = [Skip(0, 1, 8, 16), Skip(0, 1, 16, 24), Skip(0, 2, 0, 8), Skip(1, 1, 0, 8)]
    assert of_pass(skips, 0, 1) == ((8, 24),)
    assert of_pass(skips, 1, 1) == ((0, 8),)
    assert of_pass(skips, 0, 0) == ()


@pytest.mark.parametrize("text", ["", "4", "4:", ":4", "4:4", "5:4", "-1:4", "a:b", "٣:٤", "1:2:3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="give two positions"):
        parse(text)
    assert parse("4:12") == (4, 12)


def test_the_standing_is_what_all_ranks_consumed_of_their_pass() -> None:
    now = standing(3)
    assert (now.passes, now.consumed(0)) == ({0: 0}, ((0, 3 * BATCH),))
    now = standing(STEPS + 2)
    assert (now.passes, now.consumed(0)) == ({0: 1}, ((0, 2 * BATCH),))


def test_a_skip_is_widened_to_whole_batches_of_the_pass_in_which_the_history_stands() -> None:
    assert placed((27, 33), standing(3), 3) == Skip(0, 0, 24, 40, "by order")
    assert placed((LENGTH - 1, LENGTH), standing(STEPS + 1), 11) == Skip(0, 1, 72, 80, "by order")
    assert placed((0, 8), standing(3), 3, epoch=2) == Skip(0, 2, 0, 8, "by order")


def test_a_pass_that_is_over_is_not_where_it_stands() -> None:
    now = standing(STEPS)
    with pytest.raises(BadInput, match="were already consumed by step 10"):
        placed((0, 8), now, STEPS)
    now.take(PassEnded(step=STEPS, source=0, epoch=0))
    assert placed((0, 8), now, STEPS) == Skip(0, 1, 0, 8, "by order")
    with pytest.raises(BadInput, match="pass 0 was over before step 10, which is in pass 1"):
        placed((0, 8), now, STEPS, epoch=0)


def test_what_was_consumed_cannot_be_left_out() -> None:
    with pytest.raises(BadInput, match=r"positions 16 to 23 of pass 0 were already consumed by"):
        placed((20, 40), standing(3), 3)
    assert placed((24, 40), standing(3), 3).begin == 24


def test_what_lies_outside_of_the_epoch_cannot_be_left_out() -> None:
    with pytest.raises(BadInput, match="outside the epoch: reader 0 has 80 positions, 0 to 79"):
        placed((72, 81), standing(3), 3)


def test_where_several_are_read_one_must_be_named() -> None:
    other = DataOpened(source=1, kind="sample", length=100, batch=5)
    now = standing(3, other)
    assert placed((72, 80), now, 3).source == 0  # the other was opened, and no step took of it
    now.take(StepCompleted(step=3, consumed=(Consumed(1, 0, ((0, 5),)),)))
    with pytest.raises(BadInput, match=r"several readers are read \(0, 1\)"):
        placed((72, 80), now, 3)
    assert placed((51, 52), now, 3, source=1) == Skip(1, 0, 50, 55, "by order")
    with pytest.raises(BadInput, match="there is no reader 7; there are 0, 1"):
        placed((72, 80), now, 3, source=7)


def test_what_the_journal_does_not_know_cannot_be_left_out() -> None:
    with pytest.raises(BadInput, match="the journal does not say what was read before step 3"):
        placed((0, 8), Standing(), 3)


def test_steps_become_the_whole_batches_that_they_consumed() -> None:
    steps = [step_of(step, rank) for rank in range(RANKS) for step in (9, 10, 11)]
    now = standing(8)
    assert between(steps, now, "nan") == (Skip(0, 0, 64, 80, "nan"), Skip(0, 1, 0, 8, "nan"))
    one = StepCompleted(step=9, consumed=(consumed(9, 1),))
    assert between([one], now, "nan") == (Skip(0, 0, 64, 72, "nan"),)
    assert between([], now, "nan", [Skip(0, 0, 73, 74)]) == (Skip(0, 0, 72, 80, "nan"),)
    assert between([], now, "nan") == ()


def test_only_what_a_sampler_gives_can_be_left_out() -> None:
    """The outer loop over epochs is a reader as well, and so is a loop over numbers."""
    now = standing(3, DataOpened(source=1, kind="item", length=3))
    step = StepCompleted(step=4, consumed=(consumed(4, 0), Consumed(1, 0, ((0, 1),))))
    now.take(step)
    assert now.readers() == [0]
    assert between([step], now, "nan") == (Skip(0, 0, 24, 32, "nan"),)
    assert [skip.source for skip in following([step], now, ())] == [0]


def test_the_next_step_takes_what_follows_as_many_as_the_last_one_took() -> None:
    last = [step_of(3, rank) for rank in range(RANKS)]
    assert following(last, standing(3), ()) == (Skip(0, 0, 24, 32),)
    assert following(last, standing(3), [Skip(0, 0, 24, 40)]) == (Skip(0, 0, 40, 48),)
    at_the_end = [step_of(STEPS, rank) for rank in range(RANKS)]
    assert following(at_the_end, standing(STEPS), ()) == (Skip(0, 1, 0, 8),)
    assert following(at_the_end, standing(STEPS), [Skip(0, 1, 0, 8)]) == (Skip(0, 1, 8, 16),)
    assert following([], standing(3), ()) == ()


def test_skips_are_told() -> None:
    skips = [Skip(0, 1, 64, 72), Skip(2, 0, 0, 8)]
    assert told(skips) == "positions 64 to 71 of pass 1, positions 0 to 7 of pass 0 over reader 2"
