"""`walrecover audit` of a long run, with the proof of its resume: 1 million steps of 8 ranks, in a
global order, with a crash in the middle. `STEPS` in the environment makes it shorter, and the bound
with it.

The journals are written by LMDB in one transaction after another, sealed as any others.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import lmdb

from tests.bench.measure import Row, duration, show
from tests.support.protocol import attempt, reference
from walrecover import auditing, checkpoints, resumes
from walrecover import events as ev
from walrecover.codec import GENESIS, chain_of, seal
from walrecover.consumed import Consumed
from walrecover.entries import AttemptEntry, CommitEntry, encode
from walrecover.journal import Reader, StreamId
from walrecover.journal.stream import key_of
from walrecover.rundir import RunDir

STEPS = int(os.environ.get("STEPS", "1000000"))
RANKS, BATCH = 8, 64
BOUND_SECONDS = 30.0
EPOCH_STEPS = 10_000
_DIGEST = bytes(range(16))


def beginning(entry: AttemptEntry, rank: int) -> list[ev.Event]:
    """What a rank's stream holds beside its steps, at its beginning."""
    length = EPOCH_STEPS * BATCH
    return [
        ev.AttemptBegun(
            run="bench", attempt=entry.number, nonce=entry.nonce, writer=f"rank-{rank}",
            rank=rank, world=RANKS,
        ),
        ev.DataOpened(source=0, loop=(0, 0), kind="global", length=length, batch=BATCH, seed=1,
                      world=RANKS),
    ]  # fmt: skip


def step(number: int, rank: int) -> ev.StepCompleted:
    epoch, batch = divmod(number - 1, EPOCH_STEPS)
    share = BATCH // RANKS
    start = batch * BATCH + rank * share
    return ev.StepCompleted(
        at=1.75e9 + number,
        step=number,
        epoch=epoch,
        position=(epoch + 1, batch + 1),
        lr=(3e-4,),
        scalars={"loss": 2.5},
        rng={"torch": _DIGEST},
        consumed=(Consumed(0, epoch, ((start, start + share),), _DIGEST),),
        batch=_DIGEST,
    )


def write(run: RunDir, entry: AttemptEntry, rank: int, first: int, last: int) -> None:
    path = run.stream(entry.number, entry.nonce, f"rank-{rank}")
    path.mkdir(parents=True)
    environment = lmdb.open(str(path), map_size=16 << 30, lib_version=0, sync=False, metasync=False)
    lsn, chain = 0, GENESIS
    waiting = beginning(entry, rank)
    for begin in range(first, last + 1, 10_000):
        waiting += [step(n, rank) for n in range(begin, min(begin + 10_000, last + 1))]
        with environment.begin(write=True) as transaction:
            for event in waiting:
                lsn += 1
                envelope = seal(ev.encode(event), lsn=lsn, attempt=entry.number, chain=chain)
                chain = chain_of(envelope)
                transaction.put(key_of(lsn), envelope, append=True)
        waiting = []
    environment.close()
    # As the session's own follower keeps the fold of its stream while it trains.
    stream = StreamId(entry.number, entry.nonce, f"rank-{rank}")
    with Reader(path) as reader:
        head = reader.head()
    checkpoints.Follower(path, stream).catch_up(head.lsn)


def build(root: Path, steps: int) -> RunDir:
    """A run that was killed in the middle, and whose second attempt did 100 steps again."""
    run = RunDir(root / ".walrecover", "bench")
    run.create()
    middle = steps // 2
    base = reference(middle, 1)
    before, after = attempt(1), attempt(2, base)
    for number, entry in enumerate((before, CommitEntry("c", 0.0, base), after), 1):
        (run.sequence / f"{number:08d}.json").write_bytes(encode(entry))
    for rank in range(RANKS):
        write(run, before, rank, 1, middle + 100)
        write(run, after, rank, middle + 1, steps)
    return run


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        run = build(Path(name), STEPS)
        began = time.perf_counter()
        judgement = auditing.audit(run)
        verdicts = resumes.verdicts(run)
        seconds = time.perf_counter() - began
    assert judgement.verdict == "ok", judgement.unproven
    assert len(verdicts) == RANKS
    assert sum(report.consumed for report in judgement.reports) == STEPS * BATCH
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    bound = BOUND_SECONDS * STEPS / 1_000_000
    what = f"audit of {STEPS:,} steps of {RANKS} ranks ({peak} MiB at the peak)"
    return [
        Row(what, duration(seconds), "", None, f"≤ {duration(bound)}", seconds <= bound),
    ]


if __name__ == "__main__":
    raise SystemExit(not show("The audit of a long run", rows()))
