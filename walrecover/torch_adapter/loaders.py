"""Putting a DataLoader to a position without loading what is skipped.

Owns the knowledge of torch's DataLoader. The iterator is made from a copy of the loader whose
batch sampler skips, so that the draws from the random generators (base seed, then the sampler's
at its first batch) are those of the uninterrupted run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset


class _Skipping:
    """A (batch) sampler that passes over its first `count` items."""

    def __init__(self, sampler: Any, count: int) -> None:
        self._sampler = sampler
        self._count = count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._sampler), self._count, None)

    def __len__(self) -> int:
        return max(0, len(self._sampler) - self._count)


def is_loader(value: Any) -> bool:
    """Whether the batches of this loader can be skipped by its sampler."""
    return isinstance(value, DataLoader) and not isinstance(value.dataset, IterableDataset)


def generators(loader: Any) -> list[torch.Generator]:
    """The generators of its own that a loader draws from."""
    found: list[torch.Generator] = []
    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    for holder in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not g for g in found):
            found.append(generator)
    return found


def skip(loader: DataLoader[Any], count: int) -> Iterator[Any]:
    """An iterator over the batches after the first `count`.

    The first batch index is drawn before it returns, so that whatever the sampler draws has been
    drawn: the caller restores the random state after this.
    """
    clone = copy.copy(loader)
    fields = vars(clone)
    if loader.batch_sampler is not None:
        fields["batch_sampler"] = _Skipping(loader.batch_sampler, count)
    else:
        fields["sampler"] = _Skipping(loader.sampler, count)
    fields["_iterator"] = None
    iterator = iter(clone)
    if loader.num_workers == 0:
        _draw_first(iterator)
    return iterator


def _draw_first(iterator: Any) -> None:
    """Draw the first index batch now; the iterator hands it out at its first `next`."""
    indices = iterator._sampler_iter
    missing = object()
    first = next(indices, missing)

    def again() -> Iterator[Any]:
        if first is not missing:
            yield first
            yield from indices

    iterator._sampler_iter = again()
