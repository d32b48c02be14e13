"""Beginning a DataLoader at a position, without loading what is skipped.

Owns the knowledge of torch's DataLoader. Whatever the loader and its sampler draw from the random
generators on the way to the position, they draw as in the uninterrupted run: the base seed as the
iterator is made, the sampler's draws with its first batch and as often as it draws later.
"""

from __future__ import annotations

import collections
import contextlib
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from walrecover.torch_adapter import keyed
from walrecover.torch_adapter.keyed import Pass, Reader, Reading
from walrecover.torch_adapter.ordering import GlobalBatchSampler
from walrecover.torch_adapter.sharded import ShardedDataset

UNKEYED = Pass()


_persistent: weakref.WeakKeyDictionary[DataLoader[Any], Reader] = weakref.WeakKeyDictionary()
"""What reads a loader whose workers live on from pass to pass."""


def is_loader(value: Any) -> bool:
    """Whether the batches of this loader can be skipped by its sampler."""
    return (
        isinstance(value, DataLoader)
        and type(value).__iter__ is DataLoader.__iter__
        and not isinstance(value.dataset, IterableDataset)
    )


def is_global(loader: DataLoader[Any]) -> bool:
    """Whether its position is that of all ranks, whatever their number."""
    return isinstance(loader._index_sampler, GlobalBatchSampler)


def described(loader: Any) -> str:
    """A loader for people: what it is, and what gives its order."""
    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        sampler = batch_sampler
    return f"{type(loader).__name__} with {type(sampler).__name__}"


def look(value: Any) -> str:
    """What a loader, or a sharded dataset, looks like from one process to the next."""
    data = identity(value)
    name = type(data).__name__
    if isinstance(data, ShardedDataset):
        return f"{name}/{len(data.shards)}"
    order = value.sampler if value.batch_size is not None else value.batch_sampler
    try:
        length = len(data)
    except TypeError:
        length = -1
    return f"{name}/{length}/{type(order).__name__}/{value.batch_size}"


def identity(value: Any) -> Any:
    """What makes two of them the same one, in a process."""
    return value.dataset if isinstance(value, DataLoader) else value


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


def begin(loader: DataLoader[Any], this: Pass = UNKEYED, skip: int = 0) -> Reading:
    """An iterator over the batches of a pass. Loader workers are never given the first `skip`;
    without workers the caller passes over them by `advance`, which draws what the sampler draws.

    Raises BadInput where the ranks cannot share the batches of a global order.
    """
    keyed.prepare(this.seed is not None)
    if loader.persistent_workers:
        return _begin_persistent(loader, this, skip)
    return keyed.reader(loader).read(this, skip if _skips_itself(loader) else 0)


def advance(reading: Reading, loader: DataLoader[Any], count: int) -> bool:
    """Pass over batches of an iterator without workers. False: nothing was loaded for it."""
    if not _skips_itself(loader):
        collections.deque(islice(reading.iterator._sampler_iter, count), maxlen=0)  # type: ignore[attr-defined]
        reading.passed_over()
    return False


def _skips_itself(loader: DataLoader[Any]) -> bool:
    """A global order begins anywhere. The draws of any other sampler are made at their time, which
    with workers is when they start."""
    return loader.num_workers > 0 or is_global(loader)


def _begin_persistent(loader: DataLoader[Any], this: Pass, skip: int) -> Reading:
    """Workers that live on are given their seed once, in the epoch that starts them. A resumed run
    starts them in another epoch: so that its generators still draw as in the uninterrupted run,
    the seed is drawn from a copy of the generator, in both."""
    reader = _persistent.get(loader)
    if reader is not None and not skip:
        return reader.read(this, 0)
    reader = _persistent[loader] = keyed.reader(loader)
    with _drawing_from_a_copy(reader.loader):
        return reader.read(this, skip)


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
