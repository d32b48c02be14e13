"""Randomness in loaders' workers: a function of which batch it is, whoever loads it; and what each
batch was, told with it.
"""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from walrecover.data import GlobalBatchSampler
from walrecover.torch_adapter import keyed, loaders, rng, twisters
from walrecover.torch_adapter.keyed import Pass

SAMPLES = 40
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Augmented(Dataset[Any]):
    """Draws from all three generators for each sample, more or less of them."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        for _ in range(index % 3):
            random.random()
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


class Quiet(Dataset[int]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        return index


def masking(samples: list[Any]) -> Any:
    """A collate function that draws, too."""
    return samples, random.random(), float(np.random.rand()), float(torch.rand(()))


def loader(workers: int = 0, data: Any = None, **given: Any) -> DataLoader[Any]:
    data = Augmented() if data is None else data
    if not {"batch_sampler", "batch_size", "sampler", "shuffle"} & set(given):
        given["batch_sampler"] = GlobalBatchSampler(data, 6, seed=1)
    return DataLoader(
        data, num_workers=workers, collate_fn=given.pop("collate_fn", masking), **given
    )


def read(it: Any, this: Pass, count: int = 0) -> list[Any]:
    reading = loaders.begin(it, this, count)
    if not it.num_workers:
        loaders.advance(reading, it, count)
    return [(batch, reading.handed) for batch in reading]


@pytest.mark.parametrize("workers", [2, 8])
def test_a_batch_is_the_same_whoever_loads_it(workers: int) -> None:
    this = Pass(seed=5, loader=1, epoch=3)
    expected = read(loader(), this)
    assert len(expected) == 7
    assert read(loader(workers), this) == expected
    assert read(loader(workers), this, 4) == expected[4:]
    torch.manual_seed(77)  # the workers' own seeds follow from it
    random.seed(77)
    assert read(loader(workers), this) == expected


def test_no_two_batches_draw_alike() -> None:
    def drawn(this: Pass) -> set[float]:
        found: set[float] = set()
        for (samples, *more), _ in read(loader(), this):
            found.update(value for sample in samples for value in sample[1:])
            found.update(more)
        return found

    passes = [Pass(5, n, epoch) for n in (0, 1) for epoch in (0, 1)] + [Pass(6)]
    every = [drawn(this) for this in passes]
    assert all(len(one) == 3 * SAMPLES + 3 * 7 for one in every)
    assert len(set.union(*every)) == sum(map(len, every))


def test_ranks_with_orders_of_their_own_draw_differently() -> None:
    """A position in a sampler of this rank alone is no position among all ranks."""
    this = Pass(5, rank=0)
    first, second = (read(loader(shuffle=False), this._replace(rank=rank)) for rank in (0, 1))
    assert first[0][0][1] != second[0][0][1]
    whole = [read(loader(), this._replace(rank=rank)) for rank in (0, 1)]
    assert whole[0] == whole[1]  # there the position says it


def test_the_trainings_generators_are_left_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    np.random.standard_normal()  # one of a pair waits
    random.gauss(0, 1)
    it = loader()
    reading = loaders.begin(it, Pass(5))
    before = rng.capture()
    list(reading)
    assert rng.capture() == before

    class Failing(Quiet):
        def __getitem__(self, index: int) -> int:
            random.random(), np.random.rand(), torch.rand(())
            raise OSError("the disk")

    reading = loaders.begin(loader(data=Failing()), Pass(5))
    before = rng.capture()
    with pytest.raises(OSError, match="the disk"):
        next(reading)
    assert rng.capture() == before


def test_the_states_of_a_key_are_a_format_whichever_way_they_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where this Python's or NumPy's generator is not found in memory."""

    def drawn() -> list[float]:
        rng.seed(b"walrecover seeds 1/0/0/0/0/0")
        values = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return [*values, random.gauss(0, 1), float(np.random.randn())]

    expected = pytest.approx(KEYED, abs=0, rel=1e-15)
    assert drawn() == expected
    before = rng.capture()
    rng.seeded(b"another", lambda _: drawn(), None)
    assert rng.capture() == before
    monkeypatch.setattr(twisters, "python", lambda: None)
    monkeypatch.setattr(twisters, "numpy", lambda module: None)
    random.gauss(0, 1)
    np.random.randn()
    assert drawn() == expected
    before = rng.capture()
    rng.seeded(b"another", lambda _: drawn(), None)
    assert rng.capture() == before


KEYED = [
    0.8463327508103375,
    0.8949543837435462,
    0.9502950310707092,
    0.7209088742588838,
    -0.4101292676835136,
]


def test_a_shuffling_sampler_draws_from_the_trainings_generator_as_ever() -> None:
    """Its seed is drawn at the first batch, outside of what is keyed."""
    torch.manual_seed(3)
    plain = [batch.tolist() for batch in DataLoader(Quiet(), 6, shuffle=True)]
    drawn = torch.rand(3).tolist()
    torch.manual_seed(3)
    it: Any = DataLoader(Quiet(), 6, shuffle=True)
    assert [batch.tolist() for batch, _ in read(it, Pass(5))] == plain
    assert torch.rand(3).tolist() == drawn


def test_switched_off_a_batch_is_loaded_as_without() -> None:
    def seed() -> None:
        torch.manual_seed(4)
        random.seed(1)
        np.random.seed(1)

    seed()
    plain = list(loader())
    after = rng.capture()
    seed()
    assert [batch for batch, _ in read(loader(), Pass())] == plain
    assert rng.capture() == after
    assert [batch for batch, _ in read(loader(), Pass())] != plain  # the next draws


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_read_as_without(workers: int, tmp_path: Path) -> None:
    """Custom collate functions, batches as the dataset makes them, single items, workers' info."""

    class Whole(Quiet):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [-index for index in indices]

    assert _batches(DataLoader(Whole(), 16, num_workers=workers)) == [
        [-n for n in range(first, min(first + 16, SAMPLES))] for first in (0, 16, 32)
    ]
    single: Any = DataLoader(Quiet(), batch_size=None, num_workers=workers)
    assert [(item, handed.ids) for item, handed in read(single, Pass(1))] == [
        (n, (n,)) for n in range(SAMPLES)
    ]
    whole = GlobalBatchSampler(SAMPLES, 10, shuffle=False)
    chosen: Any = DataLoader(Quiet(), sampler=[3, 1, 2], batch_size=2, num_workers=workers)  # type: ignore[arg-type]
    assert [(b.tolist(), h.ids) for b, h in read(chosen, Pass(1))] == [([3, 1], [3, 1]), ([2], [2])]
    at_once: Any = DataLoader(
        np.arange(SAMPLES),  # type: ignore[arg-type]
        batch_size=None,
        sampler=whole,
        num_workers=workers,
    )
    assert [(b.tolist(), h.ranges) for b, h in read(at_once, Pass(1))] == [
        (list(range(n, n + 10)), ((n, n + 10),)) for n in range(0, 40, 10)
    ]


def _batches(it: Any) -> list[Any]:
    return [batch.tolist() for batch, _ in read(it, Pass(1))]


class Opened(Quiet):
    """What many scripts do: the worker opens the dataset's file."""

    opened = ""

    def __getitem__(self, index: int) -> int:
        assert self.opened == f"by {get_worker_info().id}"  # type: ignore[union-attr]
        assert get_worker_info().dataset is self  # type: ignore[union-attr]
        return index


def open_it(worker: int) -> None:
    info = get_worker_info()
    assert isinstance(info.dataset, Opened)  # type: ignore[union-attr]
    info.dataset.opened = f"by {worker}"  # type: ignore[union-attr]


def test_a_worker_finds_its_own_dataset() -> None:
    it: Any = DataLoader(Opened(), 8, num_workers=2, worker_init_fn=open_it)
    assert _batches(it) == [list(range(n, n + 8)) for n in range(0, SAMPLES, 8)]


class Slow(Quiet):
    """The first batch is the last to be loaded."""

    def __getitem__(self, index: int) -> int:
        if index < 4:
            time.sleep(0.05)
        return index


def test_what_a_batch_was_comes_with_it_in_whatever_order() -> None:
    """Workers run ahead, and with in_order=False overtake each other."""
    it: Any = DataLoader(Slow(), 4, num_workers=3, in_order=False)
    found = [(batch.tolist(), list(handed.ids)) for batch, handed in read(it, Pass(1))]
    assert len(found) == 10
    assert all(batch == ids for batch, ids in found)


def test_persistent_workers_get_each_pass_with_its_own_keys() -> None:
    it = loader(2, persistent_workers=True)
    passes = [Pass(5, epoch=epoch) for epoch in range(3)]
    pids = []
    for this in passes:
        reading = loaders.begin(it, this)
        pids.append([worker.pid for worker in reading.iterator._workers])  # type: ignore[attr-defined]
        assert [(batch, reading.handed) for batch in reading] == read(loader(), this)
    assert pids[0] == pids[1] == pids[2]
    reading = loaders.begin(it, passes[1])
    next(reading)  # left in the middle
    assert read(it, passes[2]) == read(loader(), passes[2])


def test_what_is_left_out_is_neither_loaded_nor_drawn_for() -> None:
    whole = read(loader(), Pass(5))
    rest = read(loader(), Pass(5, skips=((6, 13),)))
    assert [batch for batch, _ in rest] == [batch for batch, _ in whole[:1] + whole[3:]]
    assert [handed.skipped for _, handed in rest] == [(), ((6, 18),), (), (), ()]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_sampler_leaves_out_whole_batches(workers: int) -> None:
    """Positions are then those of its whole order, and batches are counted without what is out."""
    it = loader(workers, batch_size=6, shuffle=False)
    whole = read(it, Pass(5))
    skipping = Pass(5, skips=((6, 13), (23, 24)))
    rest = read(it, skipping)
    assert [batch for batch, _ in rest] == [whole[n][0] for n in (0, 4, 5, 6)]
    assert [handed.ranges for _, handed in rest] == [
        ((n, min(n + 6, 40)),) for n in (0, 24, 30, 36)
    ]
    assert [handed.skipped for _, handed in rest] == [(), ((6, 12), (12, 18), (18, 24)), (), ()]
    assert read(it, skipping, 2)[0] == rest[2]
    assert read(it, skipping, 3) == rest[3:]


def test_what_goes_to_a_worker_can_be_sent_to_a_new_interpreter() -> None:
    reader = keyed.reader(loader())
    for part in (reader.loader.dataset, reader.loader.worker_init_fn, reader.loader.collate_fn):
        pickle.loads(pickle.dumps(part))
    tagged = keyed.Tagged(0, Pass(5).key(0, 0), [1, 2])
    assert pickle.loads(pickle.dumps(tagged)) == tagged
    fetch = pickle.loads(pickle.dumps(reader.loader.dataset))
    expected = reader.loader.dataset[tagged]
    again = pickle.loads(pickle.dumps(fetch[tagged]))
    assert (again.number, again.data) == (expected.number, expected.data)


def test_numpys_generator_is_keyed_though_nobody_has_drawn_from_it(tmp_path: Path) -> None:
    """numpy.random is imported by the first use of np.random, which may be in a dataset."""
    script = tmp_path / "draws.py"
    script.write_text(
        "import sys, torch, numpy as np\n"
        "from torch.utils.data import DataLoader\n"
        "from walrecover.torch_adapter import loaders\n"
        "from walrecover.torch_adapter.keyed import Pass\n"
        "assert 'numpy.random' not in sys.modules\n"
        "class Data:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, n): return float(np.random.rand())\n"
        "its = [DataLoader(Data(), 2, num_workers=w) for w in (0, 2)]\n"
        "print([[b.tolist() for b in loaders.begin(it, Pass(1))] for it in its])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without, with_workers = json.loads(done.stdout)
    assert without == with_workers
