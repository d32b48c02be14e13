"""The digest of a batch: what of it counts, and that it is the batch as it was handed out."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from walrecover.torch_adapter.batches import PLACE_BYTES, WHOLE_BYTES, Batch

Pair = namedtuple("Pair", "x y")


def digest(*items: Any) -> bytes | None:
    batch = Batch()
    for item in items:
        batch.take([item])
    return batch.close()


def numbers(count: int = 12) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)


def test_bare_numbers_say_no_more_than_the_position_does() -> None:
    assert digest(5) is None
    assert digest(0.5, True, None) is None


@pytest.mark.parametrize("wrap", [list, tuple, lambda pair: Pair(*pair), lambda p: {"x": p}])
def test_every_element_counts_wherever_it_stands(wrap: Callable[[Any], Any]) -> None:
    def item(change: float) -> Any:
        y = numbers()
        y[7] += change
        return wrap([numbers(), y])

    assert digest(item(0.0)) == digest(item(0.0)) is not None
    assert digest(item(0.0)) != digest(item(1e-6))


def test_form_and_type_count_beside_the_bytes() -> None:
    found = {
        digest(numbers()),
        digest(numbers().reshape(3, 4)),
        digest(numbers().reshape(4, 3)),
        digest(numbers().view(torch.int32)),
        digest([numbers()]),
        digest([numbers(6), numbers(6)]),
        digest(numbers().numpy().reshape(2, 6)),
    }
    assert len(found) == 7


def test_order_and_number_of_items_count() -> None:
    one, other = numbers(), numbers() + 1
    assert len({digest(one, other), digest(other, one), digest(one), digest(one, one)}) == 4


def test_a_view_is_what_it_shows() -> None:
    wide = numbers(24).reshape(4, 6)
    assert digest(wide[:, ::2]) == digest(wide[:, ::2].clone())
    assert digest(wide.t()) == digest(wide.t().contiguous())
    assert digest(np.arange(24).reshape(4, 6)[:, ::2]) == digest(
        np.arange(24).reshape(4, 6)[:, ::2].copy()
    )


@pytest.mark.parametrize("extra", [1, 77, 3 * WHOLE_BYTES + 5])
def test_of_a_large_one_places_from_the_first_byte_to_the_last_count(extra: int) -> None:
    size = WHOLE_BYTES + extra
    large = torch.zeros(size, dtype=torch.uint8)
    before = digest(large)
    assert before == digest(torch.zeros(size, dtype=torch.uint8))
    for place in (0, PLACE_BYTES - 1, size - 1, size - PLACE_BYTES):
        large[place] = 1
        assert digest(large) != before, place
        large[place] = 0
    moved = large.reshape(-1).clone()
    moved += 1  # an augmentation that draws otherwise is seen anywhere
    assert digest(moved) != before


def test_what_the_script_does_to_a_batch_afterwards_does_not_count() -> None:
    batch, item = Batch(), numbers()
    batch.take([item])
    item.mul_(2)
    assert batch.close() == digest(numbers())
    assert batch.close() is None


@pytest.mark.parametrize(
    "item",
    [
        torch.empty(0),
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse(),
        np.array(["a", "b"]),
        np.array([None, {}], dtype=object),
        np.zeros((0, 3)),
        ["a", b"b", {"c": [1, 2.5, None]}],
        object(),
        torch.zeros(3, requires_grad=True),
    ],
)
def test_nothing_that_a_loader_gives_is_an_error(item: Any) -> None:
    assert digest(item) == digest(item)


def test_what_is_nested_in_itself_ends() -> None:
    knot: list[Any] = [numbers()]
    knot.append(knot)
    assert digest(knot) == digest(knot)
