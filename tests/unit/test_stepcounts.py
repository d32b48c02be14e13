"""Step counts held against each other over the ranks: what is refused, and what is in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover import stepcounts
from walrecover.errors import BadInput
from walrecover.stepcounts import Take, parse


def test_an_optimizer_that_has_made_more_steps_on_one_rank_is_found_with_both_values() -> None:
    found = stepcounts.disagreeing([{"o": 5.0, "p": 2.0}, {"o": 6.0, "p": 2.0}, {"o": 6.0}])
    assert found == {"o": {0: 5.0, 1: 6.0, 2: 6.0}}
    assert stepcounts.said(found) == "o: 5 steps on rank 0, 6 on ranks 1, 2"


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 3).map(float)), max_size=5))
def test_a_disagreement_is_found_exactly_where_two_ranks_have_two_counts(
    ranks: list[dict[str, float]],
) -> None:
    expected = {
        name for name in "ab" if len({counts[name] for counts in ranks if name in counts}) > 1
    }
    assert set(stepcounts.disagreeing(ranks)) == expected


def test_counters_are_found_under_their_optimizer() -> None:
    mine = ["o.state.0.step", "o.state.1.step"]
    others = ["model.step", "o.state.1.exp_avg", "g.d.state.7.step"]
    found = stepcounts.counters([*mine, *others])
    assert found == {"o": mine, "g.d": ["g.d.state.7.step"]}


def test_the_refusal_offers_both_ways_on() -> None:
    text = stepcounts.refusal({"o": {0: 5.0, 1: 6.0}}, ["model"])
    assert "o: 5 steps on rank 0, 6 on rank 1" in text
    assert "model differs between the ranks too" in text
    assert "WALRECOVER_TAKE_RANK=0:o,model" in text
    assert "strict=False" in text


TAKEN = {
    "0": Take(0),
    " 12 ": Take(12),
    "1:o, m": Take(1, ("o", "m")),
    "1:o,": Take(1, ("o",)),
}


@pytest.mark.parametrize(("text", "take"), TAKEN.items())
def test_what_is_to_be_taken(text: str, take: Take) -> None:
    assert parse(text) == take


@pytest.mark.parametrize("text", ["", "first", "-1", "0:", ":o", "0 1", "0;o"])
def test_what_cannot_be_taken_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match="WALRECOVER_TAKE_RANK is"):
        parse(text)
