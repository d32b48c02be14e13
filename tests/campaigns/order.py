"""`make torture-order`: random epochs in the global order, read whole and in pieces.

    make torture-order ARGS="--epochs 500 --seed 7"

Each epoch has its own seed, number, length, batch and tail. Read by one rank it has every sample
once, padding and what is dropped apart; read in pieces, each by another number of ranks that goes
on from the state of the piece before, its batches are the same, in the order of the ranks.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time

from tests.campaigns.report import write
from walrecover.data import GlobalBatchSampler
from walrecover.errors import BadInput
from walrecover.order import TAILS

LONGEST, MOST_RANKS = 3000, 8


def batches(samplers: list[GlobalBatchSampler], count: int) -> list[list[int]]:
    """The next global batches of ranks that read together, and of all of them to the end where
    there are fewer."""
    passes = [iter(sampler) for sampler in samplers]
    found = []
    for _ in range(count):
        parts = [next(one, None) for one in passes]
        if None in parts:
            assert parts == [None] * len(parts)
            break
        found.append([n for part in parts if part is not None for n in part])
    return found


def epoch(chance: random.Random) -> collections.Counter[str]:
    """One of them. Raises AssertionError."""
    tail = chance.choice(TAILS)
    batch = chance.randint(1, 64)
    length = chance.randint(batch if tail == "drop" else 1, LONGEST)
    seed, number = chance.randrange(1 << 64), chance.randrange(1 << 40)

    def ranks(world: int) -> list[GlobalBatchSampler]:
        made = [
            GlobalBatchSampler(length, batch, seed=seed, tail=tail, rank=rank, world=world)
            for rank in range(world)
        ]
        for one in made:
            one.set_epoch(number)
        return made

    (alone,) = ranks(1)
    whole = batches([alone], len(alone))
    assert len(whole) == len(alone)
    seen = collections.Counter(n for one in whole for n in one)
    assert set(seen) <= set(range(length))
    padding = sum(seen.values()) - len(seen)
    dropped = length - len(seen)
    assert padding == (-length % batch if tail == "pad" else 0)
    assert dropped == (length % batch if tail == "drop" else 0)

    counted = collections.Counter({"epochs": 1, "samples": length, f"tail {tail}": 1})
    worlds = [n for n in range(1, MOST_RANKS + 1) if batch % n == 0]
    state, pieces = alone.state_dict() | {"batches": 0}, []
    while len(pieces) < len(whole):
        try:
            reading = ranks(chance.choice(worlds))
        except BadInput:  # the last batch is too small for so many
            counted["refused"] += 1
            continue
        for one in reading:
            one.load_state_dict(state)
        pieces += batches(reading, chance.randint(1, max(1, len(whole) // 2)))
        state = state | {"batches": len(pieces)}
        counted["pieces"] += 1
        counted[f"of {len(reading)} ranks"] += 1
    assert pieces == whole
    return counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    chance = random.Random(args.seed)
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(args.epochs):
        counts += epoch(chance)
    write("order", dict(sorted(counts.items())), args.seed, began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
