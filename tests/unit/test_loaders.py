"""A DataLoader begun at a position: what is skipped is never loaded, and whatever the loader draws
from the random generators is drawn as in the uninterrupted run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from walrecover.session.sources import Source, resume
from walrecover.torch_adapter import loaders, rng

SAMPLES = 23


class Counting(Dataset[int]):
    """Notes which samples are loaded, in a file: its workers are other processes."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        with open(self.notes, "a") as file:
            file.write(f"{index}\n")
        return index

    def loaded(self) -> list[int]:
        found = [int(line) for line in self.notes.read_text().splitlines()]
        self.notes.write_text("")
        return found


@pytest.fixture
def dataset(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "loaded")


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributed(d: Any) -> DataLoader[Any]:
    sampler: Any = DistributedSampler(d, num_replicas=2, rank=1, shuffle=True, seed=3)
    sampler.set_epoch(4)
    return DataLoader(d, 3, sampler=sampler)


class Lazy(torch.utils.data.Sampler[int]):
    """Draws from the global generator for every index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return (int(torch.randint(SAMPLES, ())) for _ in range(self.count))

    def __len__(self) -> int:
        return self.count


Make = Callable[[Any], DataLoader[Any]]
LOADERS: dict[str, Make] = {
    "in order": lambda d: DataLoader(d, 4),
    "shuffled": lambda d: DataLoader(d, 4, shuffle=True),
    "without the last": lambda d: DataLoader(d, 4, shuffle=True, drop_last=True),
    "its own generator": lambda d: DataLoader(d, 4, shuffle=True, generator=seeded()),
    "weighted": lambda d: DataLoader(
        d, 4, sampler=WeightedRandomSampler([1.0 + n for n in range(SAMPLES)], 20)
    ),
    "weighted, its own generator": lambda d: DataLoader(
        d,
        4,
        sampler=WeightedRandomSampler(
            [1.0 + n for n in range(SAMPLES)], 20, replacement=False, generator=seeded()
        ),
    ),
    "replacing, its own generator": lambda d: DataLoader(
        d, 4, sampler=RandomSampler(d, True, 100, generator=seeded())
    ),
    "subset": lambda d: DataLoader(d, 4, sampler=SubsetRandomSampler(range(3, 17))),
    "batch sampler": lambda d: DataLoader(d, batch_sampler=BatchSampler(RandomSampler(d), 5, True)),
    "no batches": lambda d: DataLoader(d, batch_size=None, sampler=RandomSampler(d)),
    "no batches, in order": lambda d: DataLoader(d, batch_size=None, sampler=SequentialSampler(d)),
    "distributed": distributed,
    "lazy": lambda d: DataLoader(d, 4, sampler=Lazy(18)),
}


def with_workers(make: Make, workers: int, persistent: bool = False) -> Make:
    def made(dataset: Any) -> DataLoader[Any]:
        loader = make(dataset)
        loader.num_workers = workers
        if workers:
            loader.prefetch_factor = 2
            vars(loader)["persistent_workers"] = persistent
        return loader

    return made


def epoch(source: Source, upto: int | None = None) -> list[Any]:
    """Reads on, drawing between items as a training does, up to so many items."""
    found = []
    while upto is None or len(found) < upto:
        try:
            item = source.next()
        except StopIteration:
            break
        found.append(item.tolist() if isinstance(item, torch.Tensor) else item)
        torch.rand(3)
    return found


# Not a lazy sampler with workers: those are ahead of what the training draws. A stated limit.
@pytest.mark.parametrize(
    ("kind", "workers"), [(k, w) for k in LOADERS for w in (0, 2) if (k, w) != ("lazy", 2)]
)
def test_nothing_skipped_is_loaded_and_the_rest_is_the_same(
    dataset: Counting, kind: str, workers: int
) -> None:
    make = with_workers(LOADERS[kind], workers)
    for count in (3,) if workers else (0, 1, 3, "all"):
        torch.manual_seed(1)
        loader = make(dataset)
        begun = rng.capture()
        source = Source(loader)
        source.begin()
        before = epoch(source, len(loader) if count == "all" else count)
        kept, there = source.state(inside=False), rng.capture()
        after = epoch(source)
        end = rng.digests(rng.capture())
        following = Source(loader)
        following.begin()
        another_epoch = epoch(following)
        del source, following
        dataset.loaded()

        torch.manual_seed(99)
        rng.restore(begun)
        resumed = Source(make(dataset))
        assert resume([resumed], [kept], len(before)) == []
        resumed.set_generators_now(kept)
        rng.restore(there)
        assert epoch(resumed) == after
        assert rng.digests(rng.capture()) == end
        flat = {n for item in after for n in ([item] if isinstance(item, int) else item)}
        assert set(dataset.loaded()) == flat
        again = Source(resumed.value)
        again.begin()
        assert epoch(again) == another_epoch


def test_persistent_workers_draw_nothing_where_they_were_started_before(dataset: Counting) -> None:
    """In a resumed run they are started in a later epoch; the seed that they draw is the
    difference that everything behind it would show."""
    make = with_workers(LOADERS["shuffled"], 2, persistent=True)
    torch.manual_seed(1)
    loader = make(dataset)
    sources = [Source(loader) for _ in range(3)]
    sources[0].begin()
    epoch(sources[0])
    between = rng.capture()
    sources[1].begin()
    second, at_end = epoch(sources[1]), rng.digests(rng.capture())
    sources[2].begin()
    third = epoch(sources[2])

    rng.restore(between)
    resumed = [Source(make(dataset)) for _ in range(1)]
    resumed[0].begin()
    assert epoch(resumed[0]) == second
    assert rng.digests(rng.capture()) == at_end
    following = Source(resumed[0].value)
    following.begin()
    assert epoch(following) == third


def test_persistent_workers_live_on_when_an_epoch_was_resumed(dataset: Counting) -> None:
    make = with_workers(LOADERS["in order"], 1, persistent=True)
    source = Source(make(dataset))
    resume([source], [{}], 2)
    assert len(epoch(source)) == 4
    pids = [worker.pid for worker in source.iterator.iterator._workers]  # type: ignore[attr-defined]
    following = Source(source.value)
    following.begin()
    assert len(epoch(following)) == 6
    assert [w.pid for w in following.iterator.iterator._workers] == pids  # type: ignore[attr-defined]
    assert [len(batch) for batch in source.value] == [4, 4, 4, 4, 4, 3]  # read by the script itself


def test_loaders_read_together_draw_in_their_order(tmp_path: Path) -> None:
    """The second's seed is drawn after the first has loaded, and drawn for, its first batch."""

    class Drawing(Counting):
        def __getitem__(self, index: int) -> int:
            return index + int(torch.randint(1000, ())) * 100

    def pair() -> list[Source]:
        data = Drawing(tmp_path / "loaded")
        return [Source(DataLoader(data, 4, shuffle=True)) for _ in range(2)]

    def rows(sources: list[Source]) -> list[Any]:
        found = []
        with pytest.raises(StopIteration):
            while True:
                row = []
                for source in sources:
                    if row and source.first is None:
                        source.first = rng.capture()
                    row.append(source.next().tolist())
                found.append(row)
        return found

    torch.manual_seed(1)
    begun = rng.capture()
    whole = pair()
    for source in whole:
        source.begin()
    expected = rows(whole)
    for count in (1, 2, 5):
        torch.manual_seed(1)
        whole = pair()
        for source in whole:
            source.begin()
        for _ in range(count):
            for n, source in enumerate(whole):
                if n and source.first is None:
                    source.first = rng.capture()
                source.next()
        kept, there = [source.state(inside=False) for source in whole], rng.capture()
        rng.restore(begun)
        resumed = pair()
        resume(resumed, kept, count)
        rng.restore(there)
        assert rows(resumed) == expected[count:]


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


class Ahead(DataLoader[Any]):
    """Iterates in its own way, one batch ahead."""

    def __iter__(self) -> Any:
        inner = super().__iter__()
        held = next(inner)
        for item in inner:
            yield held
            held = item
        yield held


@pytest.mark.parametrize("loader", [DataLoader(Numbers(), 3), Ahead(range(10), 3)])  # type: ignore[arg-type]
def test_what_cannot_be_skipped_is_read_again_and_said_to_be(loader: DataLoader[Any]) -> None:
    assert not loaders.is_loader(loader)
    source = Source(loader)
    assert resume([source], [{}], 2) == [
        f"{type(loader).__name__} was read again from its beginning (2 items)"
    ]
    assert [item.tolist() for item in source.iterator] == [[6, 7, 8], [9]]


def test_the_generators_of_a_loader() -> None:
    own, of_sampler = seeded(1), seeded(2)
    data = list(range(4))
    sampler = RandomSampler(data, generator=of_sampler)
    assert loaders.generators(DataLoader(data)) == []  # type: ignore[arg-type]
    shuffled: Any = DataLoader(data, shuffle=True, generator=own)  # type: ignore[arg-type]
    assert loaders.generators(shuffled) == [own]
    both: Any = DataLoader(data, sampler=sampler, generator=own)  # type: ignore[arg-type]
    assert loaders.generators(both) == [own, of_sampler]
    batched: Any = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, False))  # type: ignore[arg-type]
    assert loaders.generators(batched) == [of_sampler]


def test_skipping_takes_no_part_in_the_loader_itself() -> None:
    loader: Any = DataLoader(list(range(10)), 2)  # type: ignore[arg-type]
    iterator = loaders.begin(loader, skip=3)
    loaders.advance(iterator, loader, 3)
    assert [item.tolist() for item in iterator] == [[6, 7], [8, 9]]
    assert [item.tolist() for item in loader] == [[n, n + 1] for n in range(0, 10, 2)]
    assert len(list(itertools.chain(loader))) == len(loader) == 5
