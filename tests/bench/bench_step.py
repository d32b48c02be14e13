"""What a step costs the training loop: `run.step()` and the boundary, RNG digests included.

Beside it, in the same run: an inline synced LMDB commit of an event of the same size.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import torch

import walrecover
from tests.bench.measure import Row, at_most, sample, show, timed

STEPS = 2000
COMMITS = 400


def inline_commits(folder: Path) -> list[float]:
    """Synced commits of one 300-byte event each, as a loop without a journal thread would do."""
    environment = lmdb.open(str(folder / "inline"), map_size=64 << 20, lib_version=0)
    value = os.urandom(300)
    count = iter(range(COMMITS + 1))

    def commit() -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(next(count).to_bytes(8, "big"), value)

    commit()
    found = timed(commit, COMMITS)
    environment.close()
    return found


def steps(folder: Path) -> list[float]:
    """Time inside `run.step` and the loop's own `next`, on top of a bare loop over a range."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    np.random.seed(1)
    run = walrecover.attach(
        name="bench",
        dir=str(folder / "run"),
        every="100000000steps",
        model=model,
        optimizer=optimizer,
    )
    loss = torch.tensor(1.5)
    found: list[float] = []
    iterator = iter(run.loop(range(STEPS + 64)))
    next(iterator)
    for _ in range(STEPS):
        began = time.perf_counter()
        run.step(loss=loss)
        next(iterator)
        found.append(time.perf_counter() - began)
        time.sleep(0.0005)  # the rest of a step, in which the journal's thread does its work
    run._close()
    return found[64:]


def rows() -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = inline_commits(folder)
        ours = sample(steps(folder))
        peer = sample(before)
    return [
        at_most(
            "run.step() and the boundary, NumPy's RNG in use, beside an inline synced commit",
            ours,
            peer,
            0.25,
        )
    ]


if __name__ == "__main__":
    raise SystemExit(not show("A step, as the loop sees it", rows()))
