"""The batch sampler of a global order: what each rank gets, from any position, over any world."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from walrecover.data import GlobalBatchSampler
from walrecover.errors import BadInput, Mismatch
from walrecover.order import Draws, Order, cumulative
from walrecover.torch_adapter import ordering


@st.composite
def samplers(draw: st.DrawFn) -> tuple[list[GlobalBatchSampler], int]:
    """One sampler for each rank, and an epoch."""
    world = draw(st.integers(1, 4))
    batch = world * draw(st.integers(1, 5))
    length = draw(st.integers(1, 90))
    given: dict[str, Any] = {
        "seed": draw(st.integers(0, 5)),
        "tail": draw(st.sampled_from(["keep", "drop", "pad"])),
        "shuffle": draw(st.booleans()),
        "weights": draw(st.sampled_from([None, [1.0 + n % 3 for n in range(length)]])),
    }
    try:
        ranks = [
            GlobalBatchSampler(length, batch, rank=r, world=world, **given) for r in range(world)
        ]
    except BadInput:
        given["tail"] = "pad"
        ranks = [
            GlobalBatchSampler(length, batch, rank=r, world=world, **given) for r in range(world)
        ]
    return ranks, draw(st.integers(0, 3))


def expected(sampler: GlobalBatchSampler, epoch: int, weights: bool) -> list[int]:
    """The whole epoch, position by position."""
    length, layout = sampler.layout.length, sampler.layout
    order: Any = Order(sampler.seed, epoch, length) if sampler.shuffle else lambda n: n
    if weights:
        order = Draws(sampler.seed, epoch, cumulative([1.0 + n % 3 for n in range(length)]))
    end = length if layout.tail == "keep" else layout.batches * layout.batch
    return [order(position % length) for position in range(end)]


@given(samplers(), st.sampled_from([np, torch]))
def test_all_ranks_together_give_the_order(
    given: tuple[list[GlobalBatchSampler], int], arrays: Any
) -> None:
    ranks, epoch = given
    weighted = ranks[0]._sums is not None
    ordering.arrays = arrays
    try:
        walks = [list(sampler.walk(epoch)) for sampler in ranks]
    finally:
        ordering.arrays = np
    whole = expected(ranks[0], epoch, weighted)
    batches = list(zip(*walks, strict=True))
    assert [s for batch in batches for drawn in batch for s in drawn.samples] == whole
    assert len(batches) == len(ranks[0])
    length = ranks[0].layout.length
    place = 0
    for batch in batches:
        for drawn in batch:
            handed = drawn.handed
            assert handed.ids == drawn.samples
            assert handed.skipped == ()
            covered = [n for a, b in [*handed.ranges, *handed.padded] for n in range(a, b)]
            assert covered == list(range(place, place + len(drawn.samples)))
            assert all(b <= length for _, b in handed.ranges)
            assert all(a >= length for a, _ in handed.padded)
            place += len(covered)


@given(samplers(), st.data())
def test_from_any_batch_the_rest_is_the_same(
    given: tuple[list[GlobalBatchSampler], int], data: st.DataObject
) -> None:
    ranks, epoch = given
    whole = list(ranks[-1].walk(epoch))
    count = data.draw(st.integers(0, len(whole)))
    assert list(ranks[-1].walk(epoch, count)) == whole[count:]


@given(samplers(), st.data())
def test_what_is_skipped_is_left_out_by_whole_batches_and_told(
    given: tuple[list[GlobalBatchSampler], int], data: st.DataObject
) -> None:
    ranks, epoch = given
    layout = ranks[0].layout
    ends = st.lists(st.integers(0, layout.consumed), min_size=2, max_size=2, unique=True)
    skips = [tuple(sorted(data.draw(ends))) for _ in range(data.draw(st.integers(0, 3)))]
    left_out = layout.left_out(skips)  # type: ignore[arg-type]
    out = {n for a, b in left_out for n in range(a, b)}
    for sampler in ranks:
        whole = list(sampler.walk(epoch))
        walked = list(sampler.walk(epoch, 0, skips))  # type: ignore[arg-type]
        remaining = [drawn for n, drawn in enumerate(whole) if n not in out]
        assert [drawn.samples for drawn in walked] == [drawn.samples for drawn in remaining]
        told = [one for drawn in walked for one in drawn.handed.skipped]
        assert told == ([layout.positions(batches) for batches in left_out] if walked else [])
        count = data.draw(st.integers(0, len(walked)))
        assert list(sampler.walk(epoch, count, skips)) == walked[count:]  # type: ignore[arg-type]


def test_another_world_reads_the_same_batches() -> None:
    """12 global batches; the number of ranks changes in the middle, twice."""

    def read(world: int, begin: int, end: int) -> list[list[int]]:
        walks = [
            islice(
                GlobalBatchSampler(72, 6, seed=4, rank=r, world=world).walk(1, begin), end - begin
            )
            for r in range(world)
        ]
        return [[s for drawn in batch for s in drawn.samples] for batch in zip(*walks, strict=True)]

    undisturbed = read(2, 0, 12)
    assert read(1, 0, 5) + read(3, 5, 8) + read(6, 8, 12) == undisturbed
    assert sorted(s for batch in undisturbed for s in batch) == list(range(72))


def test_weights_by_name() -> None:
    sampler = GlobalBatchSampler(4, 50, weights=[0, 1, 0, 3], samples=4000)
    found = Counter(sample for batch in sampler for sample in batch)
    assert len(sampler) == 80
    assert set(found) == {1, 3}
    assert abs(found[1] - 1000) < 6 * 1000**0.5


def test_concatenated_datasets_are_one_epoch() -> None:
    parts = [TensorDataset(torch.arange(a, b)) for a, b in ((0, 7), (7, 8), (8, 20))]
    data: Any = ConcatDataset(parts)
    loader: Any = DataLoader(data, batch_sampler=GlobalBatchSampler(data, 5, seed=2))
    read = [n for (batch,) in loader for n in batch.tolist()]
    assert sorted(read) == list(range(20))
    assert read == [Order(2, 0, 20)(n) for n in range(20)]


# -- without a run.loop ----------------------------------------------------------------------------


def test_each_pass_is_another_epoch_and_set_epoch_sets_it() -> None:
    sampler = GlobalBatchSampler(10, 5)
    epochs = [[s for batch in sampler for s in batch] for _ in range(3)]
    assert epochs == [[Order(0, e, 10)(n) for n in range(10)] for e in range(3)]
    sampler.set_epoch(1)
    assert [[s for batch in sampler for s in batch] for _ in range(2)] == [epochs[1]] * 2


def test_a_state_is_a_position() -> None:
    sampler = GlobalBatchSampler(24, 4, seed=9)
    list(sampler)
    iterator = iter(sampler)
    before = list(islice(iterator, 2))
    state = sampler.state_dict()
    rest = list(iterator)
    following = list(sampler)
    resumed = GlobalBatchSampler(24, 4, seed=9)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert list(resumed) == rest
    assert list(resumed) == following
    assert len(before + rest) == 6


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 8}, "seed was 9 and is 8"),
        ({"data": 25}, "length was 24 and is 25"),
        ({"batch": 8}, "batch was 4 and is 8"),
        ({"tail": "pad"}, "tail was keep and is pad"),
        ({"shuffle": False}, "order was"),
        ({"weights": [1.0] * 24}, "order was"),
    ],
)
def test_a_state_of_another_order_is_refused(other: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"data": 24, "batch": 4, "seed": 9}
    state = GlobalBatchSampler(**given).state_dict()
    resumed = GlobalBatchSampler(**(given | other))
    with pytest.raises(Mismatch, match=said):
        resumed.load_state_dict(state)
    assert resumed.state_dict()["batches"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": 10, "batch": 4, "rank": 0, "world": 3}, "3 ranks cannot share"),
        ({"data": 10, "batch": 4, "rank": 2}, "give both"),
        ({"data": 10, "batch": 4, "rank": 2, "world": 2}, "rank 2 of a world of 2"),
        ({"data": 10, "batch": 4, "weights": [1.0]}, "1 weights for 10 samples"),
        ({"data": 10, "batch": 4, "samples": 5}, "samples= says"),
        ({"data": 0, "batch": 4}, "this one has 0"),
        ({"data": 2, "batch": 4, "weights": [1.0, -1.0]}, "weight 1"),
    ],
)
def test_what_a_sampler_refuses(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        GlobalBatchSampler(**given)


def test_a_position_of_a_huge_epoch_costs_no_memory() -> None:
    """Ten billion samples; the figures themselves are `tests.bench data`'s."""
    sampler = GlobalBatchSampler(10**10, 512, seed=3, rank=5, world=8)
    next(sampler.walk(0, 5))  # what the first call loads
    tracemalloc.start()
    began = time.perf_counter()
    (samples, handed) = next(sampler.walk(1, 10**7))
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    order = Order(3, 1, 10**10)
    first = 10**7 * 512 + 5 * 64
    assert handed.ranges == ((first, first + 64),)
    assert samples == [order(position) for position in range(first, first + 64)]
    assert peak < 1 << 20
    assert seconds < 0.5
