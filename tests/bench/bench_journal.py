"""What the journal costs, beside what it is compared with, measured in turns in one run.

    python tests/bench/bench_journal.py [--rounds N] [--directory DIR]

Ratios are what counts: absolute figures drift with the machine. Every row gives the median and the
quartiles of its samples; a ratio is the median over the rounds of the quotient within one round.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgpack

from tests.bench.measure import Row, at_most, sample, show, timed
from walrecover.codec import GENESIS, HEADER_BYTES, chain_of, seal
from walrecover.consumed import Consumed
from walrecover.events import AttemptBegun, Event, StepCompleted, encode
from walrecover.journal import Journal, Reader
from walrecover.journal.stream import key_of

GROWTH_BOUND = 1000
"""Bytes a step of 300-byte events may take on disk, as specs/02-journal.md states."""


_FIRST = AttemptBegun(run="bench", attempt=1, nonce="00000000", writer="rank-0")
_DIGEST = bytes(range(16))


def small(step: int) -> StepCompleted:
    """About 300 bytes with its envelope: one loss, three generators, one range."""
    return StepCompleted(
        at=1.75e9 + step,
        step=step,
        epoch=1,
        position=(1, step),
        lr=(3e-4,),
        scalars={"loss": 2.5, "accuracy": 0.5},
        rng={"python": _DIGEST, "numpy": _DIGEST, "torch": _DIGEST},
        consumed=(Consumed(0, 1, ((32 * step, 32 * step + 32),)),),
        batch=_DIGEST,
        grad_norm=1.5,
    )


def large(step: int) -> StepCompleted:
    """About 690 bytes with its envelope: many scalars, generators and ranges."""
    return StepCompleted(
        at=1.75e9 + step,
        step=step,
        epoch=1,
        position=(1, step),
        lr=tuple(3e-4 * (1 + group) for group in range(8)),
        scalars={f"metric_{number}": 2.5 * number for number in range(14)},
        rng={"python": _DIGEST, "numpy": _DIGEST, "torch": _DIGEST, "cuda": _DIGEST},
        consumed=(Consumed(0, 1, tuple((32 * step + n, 32 * step + 32) for n in range(6))),),
        batch=_DIGEST,
        state=_DIGEST,
        grad_norm=1.5,
    )


def busy(seconds: float) -> None:
    """What a training loop does between two steps, holding the interpreter's lock."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def seconds_of(work: Callable[[], object]) -> float:
    return timed(work, 1)[0]


def writing(directory: Path, rounds: int) -> list[Row]:
    """Appends and syncs beside inline synced commits of the same events, in turn."""
    journal = Journal.create(directory / "a1-00000000" / "rank-0", attempt=1, first=_FIRST)
    inline, in_a_loop, durable = [], [], []
    with lmdb.open(str(directory / "inline"), map_size=1 << 30, lib_version=0) as environment:

        def commit(step: int) -> None:
            envelope = seal(encode(small(step)), lsn=step, attempt=1, chain=GENESIS)
            with environment.begin(write=True) as transaction:
                transaction.put(key_of(step), envelope, append=True)

        def until_durable(step: int) -> None:
            journal.append(small(step))
            journal.sync()

        step = 0
        for _ in range(rounds):
            for _ in range(100):
                step += 1
                inline.append(seconds_of(lambda step=step: commit(step)))
                durable.append(seconds_of(lambda step=step: until_durable(step)))
            for _ in range(100):
                event = small(step)
                busy(0.002)
                in_a_loop.append(seconds_of(lambda event=event: journal.append(event)))
    journal.close()
    peer = sample(inline)
    return [
        at_most(
            "append, as a loop sees it, beside an inline commit", sample(in_a_loop), peer, 1 / 40
        ),
        at_most("append until durable, beside an inline commit", sample(durable), peer, 1.5),
    ]


def reading(directory: Path, rounds: int, name: str, event_of: Callable[[int], Event]) -> Row:
    """Reading with every check beside a bare scan with msgpack.unpackb, in turn."""
    count = 20_000
    path = directory / "a1-00000000" / name
    first = AttemptBegun(run="bench", attempt=1, nonce="00000000", writer=name)
    with Journal.create(path, attempt=1, first=first) as journal:
        for step in range(1, count):
            journal.append(event_of(step))
    each = sum(map(len, journal_envelopes(path))) / count
    bare: list[float] = []
    checked: list[float] = []

    def scan() -> None:
        with environment.begin() as transaction:
            for _, value in transaction.cursor().iternext():
                msgpack.unpackb(value[HEADER_BYTES:])

    def read() -> None:
        for _ in reader.read():
            pass

    # One environment at a time: LMDB refuses a second one in this process.
    for _ in range(rounds):
        with lmdb.open(str(path), readonly=True, map_size=0, lib_version=0) as environment:
            scan()
            bare += [took / count for took in timed(scan, 3)]
        with Reader(path) as reader:
            checked += [took / count for took in timed(read, 3)]
    ours, peer = sample(checked), sample(bare)
    what = f"an event of {each:.0f} bytes read with every check, beside scan + msgpack.unpackb"
    return at_most(what, ours, peer, 1 / 1.2)


def journal_envelopes(path: Path) -> list[bytes]:
    with (
        lmdb.open(str(path), readonly=True, map_size=0, lib_version=0) as environment,
        environment.begin() as transaction,
    ):
        return [bytes(value) for value in transaction.cursor().iternext(keys=False)]


def growth(directory: Path) -> list[Row]:
    """Bytes on disk for each step, in groups of different sizes."""
    found = []
    for group in (1, 10, 1000):
        name = f"group-{group}"
        path = directory / "a1-00000000" / name
        first = AttemptBegun(run="bench", attempt=1, nonce="00000000", writer=name)
        count = 3000
        with Journal.create(path, attempt=1, first=first) as journal:
            for step in range(1, count + 1):
                journal.append(small(step))
                if step % group == 0:
                    journal.sync()
        size = path.joinpath("data.mdb").stat().st_size / count
        event = len(seal(encode(small(count)), lsn=count, attempt=1, chain=chain_of(b"")))
        what = f"journal growth a step, groups of {group}"
        holds = size <= GROWTH_BOUND
        bound = f"≤ {GROWTH_BOUND} B"
        found.append(Row(what, f"{size:.0f} B", f"event {event} B", None, bound, holds))
    return found


def rows(rounds: int = 15) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        gc.collect()
        return [
            *writing(directory, rounds),
            reading(directory, rounds, "small", small),
            reading(directory, rounds, "large", large),
            *growth(directory),
        ]


if __name__ == "__main__":
    raise SystemExit(not show("The journal", rows()))
