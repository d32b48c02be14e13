"""By how much two tensors differ: bits decide what, numbers by how much."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from walrecover.torch_adapter import numbers
from walrecover.torch_adapter.numbers import difference


def floats(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def bits(*patterns: int) -> torch.Tensor:
    return torch.tensor(patterns, dtype=torch.int32).view(torch.float32)


def test_tensors_of_the_same_bits_do_not_differ() -> None:
    tensor = floats(math.nan, -0.0, math.inf, 1.5)
    found = difference(tensor, tensor.clone())
    assert (found["elements"], found["unequal"], found["of"]) == (0, 0, 4)
    assert "first" not in found
    assert difference(torch.empty(0, 3), torch.empty(0, 3))["of"] == 0


def test_equal_as_numbers_is_said_apart_from_equal_in_bits() -> None:
    found = difference(floats(0.0, 1.0), floats(-0.0, 1.0))
    assert (found["elements"], found["unequal"], found["max_abs"]) == (1, 0, 0.0)
    assert (found["max_ulps"], found["first_a"], found["first_b"]) == (0, "0", "-0")
    found = difference(bits(0x7FC00000), bits(0x7FC00001))  # two NaNs
    assert (found["elements"], found["unequal"], found["nan_a"], found["nan_b"]) == (1, 0, 1, 1)


def test_a_nan_against_a_number_is_counted_and_spoils_no_maximum() -> None:
    found = difference(floats(1.0, 2.0, math.inf), floats(math.nan, 2.5, 3.0))
    assert (found["elements"], found["unequal"]) == (3, 3)
    assert (found["nan_a"], found["nan_b"]) == (0, 1)
    assert (found["max_abs"], found["max_rel"]) == (0.5, 0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neighbours_are_one_ulp_apart_across_zero_too(dtype: torch.dtype) -> None:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    one = torch.tensor([1.0], dtype=dtype)
    after = (one.view(width) + 1).view(dtype)
    assert difference(one, after)["max_ulps"] == 1
    smallest = torch.tensor([1], dtype=width).view(dtype)
    assert difference(-smallest, smallest)["max_ulps"] == 2
    largest = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert difference(-largest, largest)["max_ulps"] > 2.0 ** (8 * dtype.itemsize - 2)


def test_the_first_place_is_an_index_into_the_shape() -> None:
    one = torch.zeros(2, 3, 4, dtype=torch.int64)
    other = one.clone()
    other[1, 0, 2] = 7
    other[1, 2, 3] = -9
    found = difference(one, other)
    assert (found["first"], found["first_a"], found["first_b"]) == ([1, 0, 2], "0", "7")
    assert (found["elements"], found["max_abs"], found["max_ulps"]) == (2, 9.0, None)


@pytest.mark.parametrize(
    "pair",
    [
        (torch.tensor([True]), torch.tensor([False])),
        (torch.tensor([1 + 2j]), torch.tensor([1 - 2j])),
        (torch.ones(3).to(torch.float8_e4m3fn), torch.zeros(3).to(torch.float8_e4m3fn)),
        (torch.tensor([1], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)),
        (torch.tensor(3.0), torch.tensor(4.0)),
        (torch.arange(6.0).reshape(2, 3).T, torch.zeros(3, 2)),
    ],
    ids=lambda pair: str(pair[0].dtype),
)
def test_every_type_can_be_measured(pair: Any) -> None:
    found = difference(*pair)
    assert found["elements"] == found["unequal"] > 0
    assert found["max_abs"] > 0


ANY_FLOAT = st.floats(width=32)


@given(st.lists(st.tuples(ANY_FLOAT, ANY_FLOAT), min_size=1, max_size=40), st.integers(1, 7))
def test_chunks_change_nothing(pairs: list[tuple[float, float]], chunk: int) -> None:
    one, other = (floats(*column) for column in zip(*pairs, strict=True))
    whole = difference(one, other)
    before, numbers.CHUNK = numbers.CHUNK, chunk
    try:
        assert difference(one, other) == whole
    finally:
        numbers.CHUNK = before
    raw = [(struct.pack("<f", a), struct.pack("<f", b)) for a, b in pairs]
    assert whole["elements"] == sum(a != b for a, b in raw)
    assert whole["unequal"] == sum(a != b and not (a != a and b != b) for a, b in pairs)
