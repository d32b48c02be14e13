"""What the ledger costs the training loop, as time inside its own calls.

A loop over a map-style loader of 32 samples a batch. Timed directly: every call that the loops make
into `consuming` on the training thread, for each step; and what the journal's thread does for it.
Both must be at most 1% of a step of 25 ms together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.bench.measure import Row, duration, sample, show
from walrecover.consumed import Handed
from walrecover.session.consuming import Consuming, shares
from walrecover.session.sources import Source

STEPS, WARM_UP, BATCH = 4000, 64, 32
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

    def timed(call: Callable[[], Any], into: list[float]) -> Any:
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
        taken = timed(on_the_training_thread, here)
        timed(lambda given=taken: shares(given), there)
    return here[WARM_UP:], there[WARM_UP:]


def rows() -> list[Row]:
    found = []
    here, there = (sample(seconds) for seconds in costs())
    budget = BOUND * STEP_SECONDS
    for what, cost in (("on the training thread", here), ("in the journal's thread", there)):
        holds = here.median + there.median <= budget
        share = cost.median / STEP_SECONDS
        found.append(
            Row(
                f"the ledger of a step of {BATCH} samples, {what}, of a step of 25 ms",
                str(cost),
                duration(STEP_SECONDS),
                share,
                f"≤ {BOUND:.0%} together",
                holds,
            )
        )
    return found


if __name__ == "__main__":
    raise SystemExit(not show("The ledger, as the loop pays for it", rows()))
