"""Beginning a DataLoader at a position, without loading what is skipped.

Owns the knowledge of torch's DataLoader. Whatever the loader and its sampler draw from the random
generators on the way to the position, they draw as in the uninterrupted run: the base seed as the
iterator is made, the sampler's draws with its first batch and as often as it draws later.
"""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter


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
    return (
        isinstance(value, DataLoader)
        and type(value).__iter__ is DataLoader.__iter__
        and not isinstance(value.dataset, IterableDataset)
    )


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


def begin(loader: DataLoader[Any], skip: int = 0) -> Iterator[Any]:
    """An iterator over the batches. Loader workers are never given the first `skip`; without
    workers the caller passes over them by `advance`, which draws what the sampler draws."""
    if loader.num_workers == 0:
        return iter(loader)
    if loader.persistent_workers and (loader._iterator is None or skip):
        return _begin_persistent(loader, skip)
    return iter(_skipping(loader, skip) if skip else loader)


def advance(iterator: Any, count: int) -> bool:
    """Pass over batches of an iterator without workers. False: nothing was loaded for it."""
    if isinstance(iterator, _SingleProcessDataLoaderIter):
        collections.deque(islice(iterator._sampler_iter, count), maxlen=0)
    return False


def _skipping(loader: DataLoader[Any], skip: int) -> DataLoader[Any]:
    clone = copy.copy(loader)
    fields = vars(clone)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    fields[name] = _Skipping(fields[name], skip)
    fields["_iterator"] = None
    return clone


def _begin_persistent(loader: DataLoader[Any], skip: int) -> Iterator[Any]:
    """Workers that live on are given their seed once, in the epoch that starts them. A resumed run
    starts them in another epoch: so that its generators still draw as in the uninterrupted run,
    the seed is drawn from a copy of the generator, in both."""
    clone = _skipping(loader, skip)
    with _drawing_from_a_copy(clone):
        iterator = iter(clone)
    vars(iterator)["_index_sampler"] = loader._index_sampler  # of the epochs to come
    loader._iterator = iterator
    return iterator


@contextlib.contextmanager
def _drawing_from_a_copy(loader: DataLoader[Any]) -> Iterator[None]:
    own = loader.generator
    drawn = torch.Generator()
    drawn.set_state(torch.get_rng_state() if own is None else own.get_state())
    loader.generator = drawn
    try:
        yield
    finally:
        loader.generator = own
