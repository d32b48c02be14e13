"""What a loader draws while it loads a batch, as a function of which batch it is.

Owns how a batch's key gets to where the batch is loaded, in a worker or here, and how what the
batch is gets to the loop. Before each batch the global generators are put into the state of its
key, (seed of the run, loader, pass, position of the batch), so that a batch is the same in
whichever worker and attempt it is loaded. The training's own generators are left as they were.

A copy of the loader reads; the user's dataset, collate function and `worker_init_fn` are called as
they are.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import pin_memory
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from walrecover.consumed import Handed, chain
from walrecover.order import Range
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.ordering import GlobalBatchSampler


class Pass(NamedTuple):
    """One pass over a loader. `seed`: of the run; None leaves the workers' randomness alone.
    `loader`: its number in the run. `epoch`: passes before. `rank`: whose part it is, where ranks
    have orders of their own. `skips`: positions that are left out, by whole batches."""

    seed: int | None = None
    loader: int = 0
    epoch: int = 0
    rank: int = 0
    skips: tuple[Range, ...] = ()

    def key(self, rank: int, position: int) -> bytes | None:
        if self.seed is None:
            return None
        parts = (self.seed, self.loader, self.epoch, rank, position)
        return b"walrecover seeds 1/%d/%d/%d/%d/%d" % parts


class Tagged(NamedTuple):
    """What a worker is sent in place of an index, or a batch of them."""

    number: int
    key: bytes | None
    index: Any


class Loaded:
    """What comes back."""

    __slots__ = ("number", "data")

    def __init__(self, number: int, data: Any) -> None:
        self.number, self.data = number, data

    def pin_memory(self, device: Any = None) -> Loaded:
        pinned = pin_memory.pin_memory(self.data, device)  # type: ignore[no-untyped-call]
        return Loaded(self.number, pinned)


class Tags:
    """In place of a loader's sampler: gives each batch its number and key, and remembers what the
    batch is until it is handed out. `handed`: by number. `passed`: the digest of the ids of the
    batches that are left out at the beginning, of a sampler that had to be asked for them."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._sampler = loader._index_sampler
        self._batched = loader._auto_collation
        self._pass, self._skip = Pass(), 0
        self.handed: dict[int, Handed] = {}
        self.passed = b""

    def begin(self, this: Pass, skip: int) -> None:
        """The next iteration is this pass, without its first `skip` batches."""
        self._pass, self._skip = this, skip

    def __len__(self) -> int:
        return max(0, len(self._sampler) - self._skip)

    def __iter__(self) -> Iterator[Tagged]:
        self.handed, self.passed = {}, b""
        if isinstance(self._sampler, GlobalBatchSampler):
            return self._global(self._sampler, self.handed)
        return self._numbered(iter(self._sampler), self.handed)

    def _global(self, sampler: GlobalBatchSampler, told: dict[int, Handed]) -> Iterator[Tagged]:
        this = self._pass._replace(epoch=sampler.epoch(self._pass.epoch))
        for number, (samples, handed) in enumerate(
            sampler.walk(this.epoch, self._skip, this.skips)
        ):
            told[number] = handed
            start = (handed.ranges or handed.padded)[0][0]
            yield Tagged(number, this.key(-1, start), samples)

    def _numbered(self, indices: Iterator[Any], told: dict[int, Handed]) -> Iterator[Tagged]:
        this, number, stop = self._pass, 0, 0
        left_out: list[Range] = []
        for index in indices:
            if self._batched and not isinstance(index, Sized):
                index = list(index)
            ids = index if self._batched else (index,)
            start, stop = stop, stop + len(ids)
            if any(begin < stop and start < end for begin, end in this.skips):
                left_out.append((start, stop))
                continue
            if number >= self._skip:
                ranges = ((start, stop),) if this.skips else None
                told[number] = Handed(ids, ranges, (), tuple(left_out))
                yield Tagged(number, this.key(this.rank, start), index)
            else:
                self.passed = chain(self.passed, ids)
            number += 1
            left_out.clear()


class Fetch:
    """In place of a loader's dataset: loads a whole batch, collated, under its key."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset = loader.dataset
        fetcher: Any = _MapDatasetFetcher(
            loader.dataset, loader._auto_collation, loader.collate_fn, loader.drop_last
        )
        self._fetch: Callable[[Any], Any] = fetcher.fetch

    def __getitem__(self, tagged: Tagged) -> Loaded:
        number, key, index = tagged
        if key is None:
            return Loaded(number, self._fetch(index))
        if get_worker_info() is None:
            return Loaded(number, rng.seeded(key, self._fetch, index))
        rng.seed(key)
        return Loaded(number, self._fetch(index))


class Begin:
    """The `worker_init_fn`: the worker's info shows the user's dataset, and the user's own runs."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self._own = own

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, Fetch):
            object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._own is not None:
            self._own(worker)


class Reading:
    """An iterator over a loader's batches that tells of each what it was, as `handed`."""

    def __init__(self, iterator: Iterator[Loaded], tags: Tags) -> None:
        self.iterator = iterator
        self._tags, self._told = tags, tags.handed
        self.handed = Handed(())

    def __iter__(self) -> Reading:
        return self

    def __next__(self) -> Any:
        loaded = next(self.iterator)
        self.handed = self._told.pop(loaded.number)
        return loaded.data

    def passed_over(self) -> None:
        """The sampler has gone over some batches that are not loaded."""
        for handed in self._told.values():
            self._tags.passed = chain(self._tags.passed, handed.ids)
        self._told.clear()

    @property
    def passed(self) -> bytes:
        """The digest of the ids of all batches that were passed over; b"" where none were."""
        return self._tags.passed


class Reader(NamedTuple):
    """A copy of a loader, which reads tagged batches."""

    loader: DataLoader[Any]
    tags: Tags

    def read(self, this: Pass, skip: int) -> Reading:
        """An iterator over a pass, without its first `skip` batches."""
        self.tags.begin(this, skip)
        return Reading(iter(self.loader), self.tags)


def reader(loader: DataLoader[Any]) -> Reader:
    clone, tags = copy.copy(loader), Tags(loader)
    vars(clone).update(
        dataset=Fetch(loader),
        sampler=tags,
        batch_sampler=None,
        collate_fn=_as_it_is,
        worker_init_fn=Begin(loader.worker_init_fn),
        _iterator=None,
    )
    return Reader(clone, tags)


def prepare(keyed: bool) -> None:
    """Loaders' workers import numpy.random; what is keyed here has to be there, too, and from the
    run's beginning: a generator that comes later looks like one that has moved."""
    if keyed and sys.modules.get("numpy") is not None:
        importlib.import_module("numpy.random")


def _as_it_is(data: Any) -> Any:
    return data
