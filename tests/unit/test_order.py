"""The order of an epoch and its division among ranks."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from walrecover.errors import BadInput
from walrecover.order import LONGEST, Draws, Layout, Order, cumulative, divisors, kept

LENGTHS = st.integers(1, 3000)
SEEDS = st.integers(-(2**70), 2**70)
EPOCHS = st.integers(0, 10**6)
GOLDEN = {
    10: [0, 6, 7, 2, 1, 9, 5, 8, 3, 4],
    10**10: [4314228656, 5757459109, 1343860324],
    LONGEST: [1566152463167183865, 1959212224223480227],
    "draws": [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 2, 1],
}


@given(SEEDS, EPOCHS, LENGTHS)
def test_every_sample_stands_at_one_position(seed: int, epoch: int, length: int) -> None:
    order = Order(seed, epoch, length)
    assert sorted(map(order, range(length))) == list(range(length))


@given(SEEDS, st.integers(1, LONGEST), st.lists(st.integers(0, LONGEST - 1), unique=True))
def test_positions_of_an_epoch_of_any_length_never_meet(
    seed: int, length: int, positions: list[int]
) -> None:
    order = Order(seed, 0, length)
    inside = [position for position in positions if position < length]
    samples = [order(position) for position in inside]
    assert len(set(samples)) == len(inside)
    assert all(0 <= sample < length for sample in samples)


@given(SEEDS, st.integers(1, LONGEST), st.lists(st.integers(0, LONGEST - 1), min_size=1))
def test_arrays_are_ordered_as_numbers_are(seed: int, length: int, values: list[int]) -> None:
    """In int64: no product leaves its range, whatever the length."""
    order, inside = Order(seed, 3, length), [value % length for value in values]
    expected = [order.once(value) for value in inside]
    assert order.once(np.array(inside, np.int64)).tolist() == expected
    assert order.once(torch.tensor(inside)).tolist() == expected


def test_the_order_is_a_format() -> None:
    """A run that was begun by one release is resumed by the next: these numbers never change."""
    assert [Order(0, 0, 10)(n) for n in range(10)] == GOLDEN[10]
    assert [Order(1, 2, 10**10)(n) for n in (0, 1, 10**10 - 1)] == GOLDEN[10**10]
    assert [Order(-5, 1, LONGEST)(n) for n in (0, LONGEST - 1)] == GOLDEN[LONGEST]
    assert [Draws(0, 0, [1, 3, 6])(n) for n in range(16)] == GOLDEN["draws"]


def test_orders_of_a_few_samples_are_about_equally_frequent() -> None:
    """All 24 orders of four samples, over 12,000 seeds: 500 each, within six deviations."""
    found = Counter(tuple(map(Order(seed, 0, 4), range(4))) for seed in range(12_000))
    assert set(found) == set(itertools.permutations(range(4)))
    assert all(abs(count - 500) < 6 * 500**0.5 for count in found.values())


def test_neighbours_are_strangers() -> None:
    """The distance of samples at neighbouring positions takes each value about equally often."""
    found: Counter[int] = Counter()
    for epoch in range(100):
        order = Order(0, epoch, 101)
        samples = [order(n) for n in range(101)]
        found.update((b - a) % 101 for a, b in itertools.pairwise(samples))
    assert set(found) == set(range(1, 101))
    assert all(abs(count - 100) < 6 * 10 for count in found.values())


def test_seed_epoch_and_length_each_give_another_order() -> None:
    def first(seed: int, epoch: int, length: int) -> tuple[int, ...]:
        order = Order(seed, epoch, length)
        return tuple(order(n) for n in range(20))

    keys = itertools.product((0, 1, 12), (0, 1, 2), (1000, 1001))
    assert len({first(*key) for key in keys}) == 18


def test_an_epoch_has_bounds() -> None:
    for length in (0, -1, LONGEST + 1):
        with pytest.raises(BadInput, match=f"this one has {length}$"):
            Order(0, 0, length)
    for position in (-1, 5):
        with pytest.raises(IndexError):
            Order(0, 0, 5)(position)


def test_draws_follow_their_weights() -> None:
    draws = Draws(7, 0, cumulative([0, 1, 0, 3, 4, 0]))
    found = Counter(map(draws, range(16_000)))
    assert set(found) == {1, 3, 4}
    for sample, expected in ((1, 2000), (3, 6000), (4, 8000)):
        assert abs(found[sample] - expected) < 6 * expected**0.5
    assert [Draws(7, 1, range(1, 51))(n) for n in range(9)] != [
        Draws(7, 0, range(1, 51))(n) for n in range(9)
    ]


@given(SEEDS, st.lists(st.integers(0, 2**61), min_size=1))
def test_draws_of_arrays_are_those_of_numbers(seed: int, positions: list[int]) -> None:
    draws = Draws(seed, 0, cumulative([1.5, 0.25, 7]))
    expected = [draws.bits(position) for position in positions]
    assert draws.bits(np.array(positions, np.int64)).tolist() == expected
    assert draws.bits(torch.tensor(positions)).tolist() == expected
    assert all(0 <= bits < 2**53 for bits in expected)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, -1.0], "weight 1 is -1.0"),
        ([float("nan")], "weight 0 is nan"),
        ([float("inf")], "weight 0 is inf"),
        ([], "sum above 0"),
        ([0.0, 0.0], "sum above 0"),
        ([1e308] * 2, "finite sum"),
    ],
)
def test_what_cannot_be_weights(weights: list[float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        cumulative(weights)


# -- batches -------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, int]:
    world = draw(st.integers(1, 5))
    batch = world * draw(st.integers(1, 6))
    tail = draw(st.sampled_from(["keep", "drop", "pad"]))
    return Layout(draw(st.integers(1, 100)), batch, tail), world


@given(layouts())
def test_the_parts_of_all_ranks_tile_the_epoch(given: tuple[Layout, int]) -> None:
    layout, world = given
    taken = [
        position
        for number in range(layout.batches)
        for rank in range(world)
        for position in range(*layout.part(number, rank, world))
    ]
    assert taken == list(range(len(taken)))
    assert layout.consumed == min(len(taken), layout.length)
    if layout.tail == "keep":
        assert len(taken) == layout.length
    else:
        assert len(taken) == layout.batches * layout.batch
        assert -layout.batch < len(taken) - layout.length < layout.batch
        assert (len(taken) >= layout.length) is (
            layout.tail == "pad" or layout.length % layout.batch == 0
        )


@given(layouts())
def test_a_layout_that_is_accepted_gives_every_rank_something(given: tuple[Layout, int]) -> None:
    layout, world = given
    try:
        layout.check(world)
    except BadInput:
        starved = layout.tail == "keep" and 0 < layout.length % layout.batch < world
        assert starved or not layout.batches
        return
    for number in range(layout.batches):
        sizes = [b - a for a, b in (layout.part(number, r, world) for r in range(world))]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("layout", "world", "said"),
    [
        (Layout(1000, 64), 3, "1, 2, 4, 8, 16, 32 or 64 can; 3 ranks could share one of 63 or 66"),
        (Layout(1000, 2), 3, "1 or 2 can; 3 ranks could share one of 3$"),
        (Layout(1000, 7), 2, "1 or 7 can; 2 ranks could share one of 6 or 8"),
        (Layout(99_999, 5040), 11, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12 or … 5040 can"),
        (Layout(101, 4), 2, "1 sample for 2 ranks.*or 1 of them at most"),
        (Layout(3, 4, "drop"), 1, "nothing remains"),
        (Layout(3, 0), 1, "both are at least 1"),
        (Layout(3, 1, "torn"), 1, "'torn': it is one of keep, drop, pad"),
    ],
)
def test_what_ranks_cannot_share(layout: Layout, world: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        layout.check(world)


@given(layouts(), st.lists(st.tuples(st.integers(0, 99), st.integers(1, 100)), max_size=4))
def test_what_is_left_out_and_what_is_kept_are_the_epoch(
    given: tuple[Layout, int], asked: list[tuple[int, int]]
) -> None:
    layout, _ = given
    skips = [(a, a + n) for a, n in asked if a + n <= layout.consumed]
    left_out = layout.left_out(skips)
    out = {number for start, stop in left_out for number in range(start, stop)}
    assert out == {p // layout.batch for a, b in skips for p in range(a, b)}
    remaining = [n for n in range(layout.batches) if n not in out]
    assert [kept(left_out, n) for n in range(len(remaining))] == remaining
    assert kept(left_out, len(remaining)) >= layout.batches
    for batches in left_out:
        start, stop = layout.positions(batches)
        assert (start, stop) == (layout.part(batches[0])[0], min(stop, layout.consumed))


def test_a_skip_outside_of_the_epoch_is_refused() -> None:
    for skip in ((-1, 5), (90, 101), (5, 5), (7, 3)):
        with pytest.raises(BadInput, match=f"positions {skip[0]}:{skip[1]} cannot be skipped"):
            Layout(100, 10).left_out([skip])


def test_divisors() -> None:
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert divisors(1) == [1]
