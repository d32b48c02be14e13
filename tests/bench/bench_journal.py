"""What the journal costs, beside what it is compared with, measured in turns in one run.

    python tests/bench/bench_journal.py [--rounds N] [--directory DIR]

Ratios are what counts: absolute figures drift with the machine. Every row gives the median and the
quartiles of its samples; a ratio is the median over the rounds of the quotient within one round.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgpack
from rich.console import Console
from rich.table import Table

from walrecover.codec import GENESIS, HEADER_BYTES, chain_of, seal
from walrecover.events import AttemptBegun, Event, StepCompleted, encode
from walrecover.journal import Journal, Reader, StreamId
from walrecover.journal.stream import key_of

_STREAM = StreamId(1, "00000000", "rank-0")
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
        ranges=((32 * step, 32 * step + 32),),
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
        ranges=tuple((32 * step + part, 32 * step + 32) for part in range(6)),
        batch=_DIGEST,
        state=_DIGEST,
        grad_norm=1.5,
    )


class Sampled(NamedTuple):
    """Microseconds, one list of samples for each round."""

    rounds: list[list[float]]

    def add(self, samples: list[float]) -> None:
        self.rounds.append(samples)

    def text(self) -> str:
        every = [sample for samples in self.rounds for sample in samples]
        low, middle, high = statistics.quantiles(every, n=4) if len(every) > 1 else every * 3
        return f"{middle:9.2f}  [{low:.2f} … {high:.2f}]"

    def ratio_to(self, other: Sampled) -> float:
        quotients = [
            statistics.median(own) / statistics.median(others)
            for own, others in zip(self.rounds, other.rounds, strict=True)
        ]
        return statistics.median(quotients)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e6


def busy(seconds: float) -> None:
    """What a training loop does between two steps, holding the interpreter's lock."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def measure_writing(directory: Path, rounds: int, table: Table) -> None:
    journal = Journal.create(directory / "a1-00000000" / "rank-0", attempt=1, first=_FIRST)
    inline, appended, in_a_loop, durable = (Sampled([]) for _ in range(4))
    with lmdb.open(str(directory / "inline"), map_size=1 << 30, lib_version=0) as environment:

        def commit(step: int) -> None:
            envelope = seal(encode(small(step)), lsn=step, attempt=1, chain=GENESIS)
            with environment.begin(write=True) as transaction:
                transaction.put(key_of(step), envelope, append=True)

        step = 0
        for _ in range(rounds):
            samples: tuple[list[float], ...] = ([], [], [], [])
            for _ in range(100):
                step += 1
                event = small(step)
                samples[0].append(timed(lambda step=step: commit(step)))
                begun = time.perf_counter()
                samples[1].append(timed(lambda event=event: journal.append(event)))
                journal.sync()
                samples[3].append((time.perf_counter() - begun) * 1e6)
            for _ in range(100):
                event = small(step)
                busy(0.002)
                samples[2].append(timed(lambda event=event: journal.append(event)))
            for sampled, found in zip((inline, appended, in_a_loop, durable), samples, strict=True):
                sampled.add(found)
    journal.close()
    table.add_row("inline synced LMDB commit (encode, seal, put)", inline.text(), "1")
    for name, sampled, wanted in (
        ("append, as a loop of 2 ms steps sees it", in_a_loop, "≤ 0.025"),
        ("append, just before a sync", appended, ""),
        ("append until sync returned", durable, "≤ 1.5"),
    ):
        table.add_row(name, sampled.text(), f"{sampled.ratio_to(inline):.3f}", wanted)


def measure_reading(
    directory: Path, rounds: int, table: Table, name: str, event_of: Callable[[int], Event]
) -> None:
    count = 20_000
    path = directory / "a1-00000000" / name
    first = AttemptBegun(run="bench", attempt=1, nonce="00000000", writer=name)
    with Journal.create(path, attempt=1, first=first) as journal:
        for step in range(1, count):
            journal.append(event_of(step))
    bytes_each = sum(map(len, journal_envelopes(path))) / count
    bare, checked = Sampled([]), Sampled([])

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
            bare.add([timed(scan) / count for _ in range(3)])
        with Reader(path) as reader:
            checked.add([timed(read) / count for _ in range(3)])
    table.add_row(f"{bytes_each:.0f}-byte events: bare scan + msgpack.unpackb", bare.text(), "1")
    speed = 1 / checked.ratio_to(bare)
    table.add_row(
        "    Reader.read, every check", checked.text(), f"{speed:.2f} x as fast", "≥ 1.2 x"
    )


def journal_envelopes(path: Path) -> list[bytes]:
    with (
        lmdb.open(str(path), readonly=True, map_size=0, lib_version=0) as environment,
        environment.begin() as transaction,
    ):
        return [bytes(value) for value in transaction.cursor().iternext(keys=False)]


def measure_bytes(directory: Path, table: Table) -> None:
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
        table.add_row(f"bytes a step on disk, groups of {group} ({event} each)", f"{size:9.0f}", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=options.directory))
    table = Table("", "µs: median [quartiles]", "ratio", "wanted", title="journal")
    try:
        gc.collect()
        measure_writing(directory, options.rounds, table)
        measure_reading(directory, options.rounds, table, "small", small)
        measure_reading(directory, options.rounds, table, "large", large)
        measure_bytes(directory, table)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
