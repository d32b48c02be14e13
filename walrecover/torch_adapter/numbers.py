"""By how much two tensors of one shape and type differ.

Owns the arithmetic of comparing; reads nothing. Bits decide what differs, numbers by how much.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 1 << 22
_WIDTHS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def difference(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """`elements` that differ in their bits and `unequal` in their number (NaN equals NaN, and
    −0.0 equals 0.0), `of` how many; largest absolute and relative difference of finite numbers,
    largest distance in ulps; the first place, with both values."""
    mine, its = one.detach().contiguous().flatten(), other.detach().contiguous().flatten()
    found: dict[str, Any] = {"of": mine.numel(), "elements": 0, "unequal": 0}
    found |= {"max_abs": 0.0, "max_rel": 0.0, "max_ulps": None, "nan_a": 0, "nan_b": 0}
    for start in range(0, mine.numel(), CHUNK):
        a, b = mine[start : start + CHUNK], its[start : start + CHUNK]
        differ = (_bytes(a) != _bytes(b)).any(1)
        count = int(differ.sum())
        if not count:
            continue
        if not found["elements"]:
            place = start + int(differ.to(torch.uint8).argmax())
            found["first"] = _index(place, tuple(one.shape))
            found["first_a"], found["first_b"] = (_shown(flat[place]) for flat in (mine, its))
        found["elements"] += count
        _measure(found, a[differ], b[differ])
    return found


def _shown(element: torch.Tensor) -> str:
    """With as many digits as tell it from its neighbours."""
    value = element.item()
    is_short = element.is_floating_point() and element.element_size() < 8
    return f"{value:.9g}" if is_short else repr(value)


def _bytes(flat: torch.Tensor) -> torch.Tensor:
    return flat.view(torch.uint8).reshape(flat.numel(), -1)


def _index(place: int, shape: tuple[int, ...]) -> list[int]:
    index: list[int] = []
    for size in reversed(shape):
        index.insert(0, place % size)
        place //= size
    return index


def _measure(found: dict[str, Any], a: torch.Tensor, b: torch.Tensor) -> None:
    """Add what the elements of a chunk say."""
    if a.is_complex():
        a, b = torch.view_as_real(a).flatten(), torch.view_as_real(b).flatten()
    one, other = a.to(torch.float64), b.to(torch.float64)
    nan_a, nan_b = one.isnan(), other.isnan()
    found["nan_a"] += int(nan_a.sum())
    found["nan_b"] += int(nan_b.sum())
    found["unequal"] += int(((a != b) & ~(nan_a & nan_b)).sum())
    finite = one.isfinite() & other.isfinite()
    if not finite.any():
        return
    one, other = one[finite], other[finite]
    gap = (one - other).abs()
    scale = torch.maximum(one.abs(), other.abs())
    found["max_abs"] = max(found["max_abs"], float(gap.max()))
    found["max_rel"] = max(
        found["max_rel"], float((gap / scale.clamp(min=torch.finfo(torch.float64).tiny)).max())
    )
    if a.dtype.is_floating_point and a.element_size() in _WIDTHS:
        ulps = int(_ulps(a[finite], b[finite]).max())
        found["max_ulps"] = max(found["max_ulps"] or 0, ulps)


def _ulps(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How many representable numbers lie between two floats, in each place."""
    mine, its = _ordered(one), _ordered(other)
    roughly = (mine.to(torch.float64) - its.to(torch.float64)).abs()
    # Exact, but where the subtraction of two 64-bit numbers would overflow.
    return torch.where(roughly < 2.0**62, (mine - its).abs().to(torch.float64), roughly)


def _ordered(flat: torch.Tensor) -> torch.Tensor:
    """Floats as whole numbers in whose order neighbours are one apart."""
    width = _WIDTHS[flat.element_size()]
    raw = flat.view(width).to(torch.int64)
    return torch.where(raw < 0, torch.iinfo(width).min - raw, raw)
