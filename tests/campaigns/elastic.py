"""`make torture-elastic`: chains of 12 restarts, each with another number of ranks, kills between.

    make torture-elastic ARGS="--chains 3 --seed 7"

In each attempt 1, 2 or 3 ranks train until one of them, drawn by chance, is killed or told to stop.
Every step of every chain must be made of the samples, with the learning rate, that it has in an
undisturbed run of one rank; the ledger must tile every epoch and agree with the file in which the
ranks note their samples; and every resume must be proven: tolerant where the number of ranks is
another, else exact.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.campaigns.proof import proofs
from tests.campaigns.report import write
from tests.end_to_end.scripts import resized
from tests.support.attempt import KILL
from tests.support.elastic import TERM, Elastic
from tests.support.forkserver import ForkServer
from tests.support.trained import agree
from tests.support.trial import KILLED

RESTARTS, EPOCHS = 12, 11
MEMORY = Path("/dev/shm")


class Failed(Exception):
    """An attempt did not end as it must."""


def chain(server: ForkServer, folder: Path, chance: random.Random) -> Elastic:
    """A run to its end, over so many restarts. Raises Failed."""
    run = Elastic(server, folder, WALRECOVER_EVERY=f"{chance.randint(1, 4)}steps")
    world = 2
    for _ in range(RESTARTS):
        how = (chance.randint(1, 4), chance.choice(("step", "boundary")), chance.choice(SIGNALS))
        if how[2] == TERM:
            how = (how[0], "step", TERM)
        who = chance.randrange(world)
        ended = run.run(world, {who: how}, epochs=EPOCHS)
        if ended[who].status != (KILLED if how[2] == KILL else 128 + TERM):
            raise Failed(f"rank {who} of {world}, to be hit at {how}: {ended}")
        world = chance.choice([n for n in (1, 2, 3) if n != world or chance.random() < 0.2])
    ended = run.run(world, epochs=EPOCHS)
    if any(one.status for one in ended):
        raise Failed(f"the last attempt, of {world} ranks: {ended}")
    return run


SIGNALS = (KILL, KILL, KILL, TERM)


def campaign(server: ForkServer, folder: Path, chains: int, seed: int) -> dict[str, Any]:
    """Raises Failed or AssertionError."""
    chance = random.Random(seed)
    (folder / "calm").mkdir()
    calm = Elastic(server, folder / "calm")
    if calm.run(1, epochs=EPOCHS)[0].status:
        raise Failed("the undisturbed run")
    counts: collections.Counter[str] = collections.Counter()
    resumes: collections.Counter[str] = collections.Counter()
    not_proven: list[str] = []
    for number in range(chains):
        where = folder / str(number)
        where.mkdir()
        run = chain(server, where, chance)
        assert run.samples() == calm.samples(), number
        assert run.learning_rates() == calm.learning_rates(), number
        counts.update(agree(run.directory, run.ids, EPOCHS, resized.SIZE))
        counts["restarts"] += RESTARTS
        counts["resumes_of_another_world"] += sum(e.saved_by > 0 for e in run.resumed())
        found = proofs(run.directory)
        resumes.update(found["resumes"])
        not_proven += [f"chain {number}: {one}" for one in found["not_proven"]]
        print(f"chain {number}: {found}", file=sys.stderr)
    return {
        "chains": chains,
        **dict(sorted(counts.items())),
        "resumes": dict(sorted(resumes.items())),
        "not_proven": not_proven,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    server = ForkServer()
    try:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
            counts = campaign(server, Path(name), args.chains, args.seed)
    finally:
        server.close()
    write("elastic", counts, args.seed, began)
    return 0 if not counts["not_proven"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
