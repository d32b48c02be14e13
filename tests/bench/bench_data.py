"""What the global order costs: coming back to a position of an epoch of ten billion samples, and
drawing indices; and what a batch costs more for being told of, and keyed, where the training thread
loads it.

Beside the first, the same in an epoch of ten thousand samples; beside the last, the same loader
read by itself.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.bench.measure import Row, Sample, at_most, duration, sample, show, timed
from walrecover.data import GlobalBatchSampler
from walrecover.torch_adapter import loaders
from walrecover.torch_adapter.keyed import Pass

HUGE, SMALL = 10**10, 10**4
BATCH, WORLD = 256, 8
RESTORES = 300
DRAWN = 1_000_000
BATCHES = 2000


def restore(length: int) -> None:
    """A new process's sampler, to the first batch at some position."""
    sampler = GlobalBatchSampler(length, BATCH, seed=1, rank=3, world=WORLD)
    next(sampler.walk(random.randrange(9), random.randrange(len(sampler))))


def peak(length: int) -> int:
    """Bytes that Python and NumPy allocate for it at once."""
    tracemalloc.start()
    restore(length)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def restoring() -> list[Row]:
    restore(HUGE)
    ours, beside = (sample(timed(lambda n=n: restore(n), RESTORES)) for n in (HUGE, SMALL))  # type: ignore[misc]
    bytes_of = [max(peak(length) for _ in range(20)) for length in (HUGE, SMALL)]
    what = "to a position of 10 billion samples, to its first batch; beside 10 thousand"
    bound, flat = ours.median <= 1e-3, bytes_of[0] <= 1.5 * bytes_of[1]
    ratio = ours.median / beside.median
    memory = [f"{n / 1024:.0f} KiB" for n in bytes_of]
    return [
        Row(what, str(ours), str(beside), ratio, "≤ 1 ms", bound),
        Row("  at most allocated for it", *memory, bytes_of[0] / bytes_of[1], "≤ 1.5 ×", flat),
    ]


def drawing() -> Row:
    sampler = GlobalBatchSampler(HUGE, BATCH, seed=1, rank=3, world=WORLD)
    per = BATCH // WORLD
    found = []
    for epoch in range(7):
        began = time.perf_counter()
        count = sum(len(drawn.samples) for drawn in islice(sampler.walk(epoch), DRAWN // per))
        found.append((time.perf_counter() - began) / count)
    each = sample(found)
    rate = 1 / each.median
    what = f"one index of a rank, {DRAWN:,} drawn in batches of {per}"
    return Row(what, _nanoseconds(each), "", None, f"≥ 1 M/s: {rate / 1e6:.1f}", rate >= 1e6)


def _nanoseconds(of: Sample) -> str:
    return f"{of.median * 1e9:.0f} ns [{of.low * 1e9:.0f}, {of.high * 1e9:.0f}]"


def fetching(iterator: Any) -> list[float]:
    next(iterator)
    return timed(lambda: next(iterator), BATCHES)


def keyed() -> list[Row]:
    data = TensorDataset(torch.randn(SMALL, 16))

    def loader() -> DataLoader[Any]:
        sampler = GlobalBatchSampler(10**9, 32, seed=1)
        return DataLoader(_Repeated(data), batch_sampler=sampler)

    torch.rand(1), random.random()
    plain = sample(fetching(iter(loader())))
    told = sample(fetching(loaders.begin(loader(), Pass())))
    ours = sample(fetching(loaders.begin(loader(), Pass(seed=1))))
    what = "a batch of 32 small tensors that the training thread loads: "
    more = ours.median - plain.median
    return [
        at_most(what + "told of", told, plain, 1)._replace(bound="", holds=None),
        at_most(what + "keyed, too", ours, plain, 1)._replace(
            bound=f"{duration(max(0.0, more))} more", holds=None
        ),
    ]


class _Repeated(torch.utils.data.Dataset[Any]):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Any:
        return self.data[index % len(self.data)]


def rows() -> list[Row]:
    torch.set_num_threads(1)
    return [*restoring(), drawing(), *keyed()]


if __name__ == "__main__":
    raise SystemExit(not show("Data in a global order", rows()))
