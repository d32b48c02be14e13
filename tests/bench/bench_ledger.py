"""What the ledger costs the training loop, as time inside its own calls.

A loop over a map-style loader of 32 samples a batch. Timed directly: every call that the loops make
into `consuming` on the training thread, for each step; what the journal's thread does for it; and
the digest of the batch. All must be at most 1% of a step of 25 ms together. Beside it, such a step
with walrecover and without, each with its spread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import walrecover
from tests.bench.measure import Row, at_most, duration, sample, show, timed
from walrecover.consumed import Handed
from walrecover.session.consuming import Consuming, shares
from walrecover.session.sources import Source
from walrecover.torch_adapter.batches import Batch

STEPS, WARM_UP, BATCH, PAIRS, SIDE = 4000, 64, 32, 264, 500
STEP_SECONDS = 0.025
BOUND = 0.01


class Batches:
    """An iterator that tells of each batch what it was."""

    def __init__(self) -> None:
        self.handed = Handed(())

    def begin(self, number: int) -> None:
        first = number * BATCH
        self.handed = Handed(list(range(first, first + BATCH)), ((first, first + BATCH),))


def costs() -> tuple[list[float], list[float]]:
    """Seconds of each step, on the training thread and in the journal's."""
    epochs, data = Source(range(10)), Source(range(STEPS * BATCH))
    batches = Batches()
    data.iterator = batches  # type: ignore[assignment]
    consuming = Consuming()
    outer = consuming.begin((0,), [epochs])
    inner = consuming.begin((0, 0), [data])
    loops = [outer, inner]
    outer[0].take()
    here: list[float] = []
    there: list[float] = []

    def noted(call: Callable[[], Any], into: list[float]) -> Any:
        began = time.perf_counter()
        answer = call()
        into.append(time.perf_counter() - began)
        return answer

    def on_the_training_thread() -> Any:
        inner[0].take()
        consuming.made(loops)
        consuming.ledger(loops)
        return consuming.taken()

    for number in range(STEPS):
        batches.begin(number)
        taken = noted(on_the_training_thread, here)
        noted(partial(shares, taken), there)
    return here[WARM_UP:], there[WARM_UP:]


def digests() -> list[float]:
    """Seconds of each step for the digest of its batch: pictures and labels."""
    pictures, labels = torch.randn(BATCH, 3, 64, 64), torch.randint(0, 10, (BATCH,))
    batch = Batch()

    def digest() -> bytes | None:
        batch.take([pictures, labels])
        return batch.close()

    return timed(digest, STEPS)[WARM_UP:]


def with_and_without(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of a step of about 25 ms in a run, and of the same step outside of it, in turn."""
    data = TensorDataset(torch.randn(BATCH * PAIRS, 64), torch.randint(0, 10, (BATCH * PAIRS,)))
    weight = torch.randn(SIDE, SIDE)

    def work() -> None:
        for _ in range(6):
            torch.mm(weight, weight)

    run = walrecover.attach(name="bench", dir=str(folder), every="100000s", weight=weight)
    inside, outside = [], []
    began = time.perf_counter()
    for _ in run.loop(DataLoader(data, BATCH)):
        work()
        run.step(loss=0.5)
        # The boundary comes with the next item, behind the step outside, which is taken off.
        between = timed(work, 1)[0]
        inside.append(time.perf_counter() - began - between)
        outside.append(between)
        began = time.perf_counter()
    return inside[WARM_UP:], outside[WARM_UP:]


def rows() -> list[Row]:
    torch.set_num_threads(1)
    here, there = (sample(seconds) for seconds in costs())
    digest = sample(digests())
    holds = here.median + there.median + digest.median <= BOUND * STEP_SECONDS
    found = [
        Row(
            f"{what}, of a step of 25 ms",
            str(cost),
            duration(STEP_SECONDS),
            cost.median / STEP_SECONDS,
            f"≤ {BOUND:.0%} together",
            holds,
        )
        for what, cost in (
            (f"the ledger of a step of {BATCH} samples, on the training thread", here),
            ("the same, in the journal's thread", there),
            ("the digest of a batch of 1.5 MB, on the training thread", digest),
        )
    ]
    with tempfile.TemporaryDirectory() as name:
        ours, bare = (sample(seconds) for seconds in with_and_without(Path(name)))
    row = at_most(
        "a step with walrecover, its loader's fetch included, beside a bare one", ours, bare, 1
    )
    return [*found, row._replace(bound="", holds=None)]


if __name__ == "__main__":
    raise SystemExit(not show("The ledger, as the loop pays for it", rows()))
