"""`make torture-ledger`: a million rules over a model (tests/support/ledger_machine.py).

    make torture-ledger ARGS="--rules 100000 --seed 7 --minutes 10"

Steps, snapshots, crashes, resumes, other numbers of ranks, rewinds and forks in any order; after
them the ledger must prove that the surviving history is exactly once, and agree with the model's
own count. Now and then a step that counts is falsified, or a stream taken away: that must be found.
The counts go to specs/campaigns/ledger.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections import Counter

from tests.campaigns import report
from tests.support.ledger_machine import DONE, walk


def work(rules: int, seed: int, seconds: float) -> Counter[str]:
    """One process's share. What fails is raised, with the seed that leads there."""
    ends = time.monotonic() + seconds
    try:
        walk(rules, seed, lambda: time.monotonic() > ends)
    except AssertionError as error:
        raise AssertionError(f"walk({rules}, {seed}): {error}") from error
    return DONE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="no longer than this")
    chosen = parser.parse_args()
    began = time.monotonic()
    share = -(-chosen.rules // chosen.workers)
    draw = random.Random(chosen.seed)
    shares = [(share, draw.getrandbits(32), chosen.minutes * 60) for _ in range(chosen.workers)]
    done: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(chosen.workers) as pool:
        for counted in pool.starmap(work, shares):
            done += counted
    found = {name: count for name, count in sorted(done.items()) if name.startswith("found")}
    rules = {name: count for name, count in sorted(done.items()) if name not in found}
    counts = {"rules": sum(rules.values()), "by_rule": rules, "falsified": found}
    report.write("ledger", counts, chosen.seed, began)


if __name__ == "__main__":
    main()
