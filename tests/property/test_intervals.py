"""Compact sets of positions say what plain sets would."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from walrecover.intervals import Stretch, Trail, lay

_intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=20)


@st.composite
def stretches(draw: st.DrawFn) -> Stretch:
    width = draw(st.integers(1, 6))
    count = draw(st.integers(1, 6))
    stride = draw(st.sampled_from([width, 7, 8, 8, 8, 12])) if count > 1 else 0
    return Stretch(draw(st.integers(0, 40)), width, max(stride, width) if stride else 0, count)


def positions(stretch: Stretch) -> list[int]:
    return [
        stretch.start + n * stretch.stride + offset
        for n in range(stretch.times)
        for offset in range(stretch.width)
    ]


@given(_intervals)
def test_a_trail_holds_what_it_was_given_however_often(intervals: list[tuple[int, int]]) -> None:
    trail = Trail()
    for first, width in intervals:
        trail.add(first, first + width)
    held = Counter(p for stretch in trail.stretches() for p in positions(stretch))
    assert held == Counter(p for first, width in intervals for p in range(first, first + width))


@given(st.lists(st.lists(stretches(), max_size=6), min_size=1, max_size=3))
def test_cells_tile_what_lies_in_any_layer(layers: list[list[Stretch]]) -> None:
    counted = [Counter(p for stretch in layer for p in positions(stretch)) for layer in layers]
    found: dict[int, tuple[int, ...]] = {}
    for cell in lay(layers):
        for position in positions(cell.where):
            assert position not in found
            found[position] = cell.counts
    assert found == {
        position: tuple(counter[position] for counter in counted)
        for position in set().union(*counted)
    }


@given(st.integers(1, 8), st.integers(1, 5), st.integers(2, 10**9))
def test_the_shares_of_all_ranks_are_one_cell(world: int, each: int, steps: int) -> None:
    whole = world * each
    shares = [Stretch(rank * each, each, whole, steps) for rank in range(world)]
    assert [cell.where.size for cell in lay([shares])] == [whole * steps]


def test_a_rank_share_is_one_stretch() -> None:
    trail = Trail()
    for batch in range(1000):
        trail.add(batch * 8 + 2, batch * 8 + 4)
    assert trail.stretches() == [Stretch(2, 2, 8, 1000)]


def test_a_missing_rank_is_one_cell_that_people_can_read() -> None:
    whole, shares = [Stretch(0, 8000)], [Stretch(r * 2, 2, 8, 1000) for r in (0, 1, 3)]
    missing = [cell.where for cell in lay([whole, shares]) if cell.counts == (1, 0)]
    assert [str(where) for where in missing] == ["4 to 5 and so on every 8, 1000 times"]
