"""The stateful machine at full size: a million rules over journal, snapshots and recovery.

    make torture-machine ARGS="--rules 100000 --seed 7"

Each process draws its own rules; the counts of all go to specs/campaigns/machine.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections import Counter

from hypothesis import HealthCheck

from tests.campaigns import report
from tests.support.machine import COUNTS, run_machine
from tests.support.protocol import NAMES

Counted = tuple[Counter[str], Counter[str]]


def work(rules: int, seed: int) -> Counted:
    """One process's share. What fails is raised, with the rules that lead there."""
    run_machine(
        rules, seed=seed, steps=100, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    return COUNTS.rules, COUNTS.crashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    began = time.monotonic()
    share = -(-chosen.rules // chosen.workers)
    draw = random.Random(chosen.seed)
    shares = [(share, draw.getrandbits(32)) for _ in range(chosen.workers)]
    rules: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(chosen.workers) as pool:
        for done, crashed in pool.starmap(work, shares):
            rules += done
            crashes += crashed
    counts = {
        "rules": rules.total(),
        "by_rule": dict(sorted(rules.items())),
        "crashes": {name: crashes[name] for name in NAMES},
    }
    report.write("machine", counts, chosen.seed, began)


if __name__ == "__main__":
    main()
