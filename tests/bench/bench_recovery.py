"""Finding the last consistent state of a long run, and folding it.

A run of `EVENTS` events is written once; then `walrecover replay` and `status` are run on it as
processes, beside the same process that only shows its version.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.bench.measure import Row, Sample, as_installed, duration, sample, show, timed
from walrecover import checkpoints, events, recovery
from walrecover.journal import Journal, Reader, StreamId
from walrecover.processes import identity
from walrecover.rundir import RunDir
from walrecover.state import StreamKey, fold

EVENTS = 3_000_000
FOLD_BOUND = 500_000
FIND_BOUND = 0.050
STATUS_BOUND = 1.0


def step(number: int) -> events.StepCompleted:
    return events.StepCompleted(
        at=1.7e9 + number,
        step=number,
        epoch=number // 1000,
        position=(number // 1000 + 1, number % 1000 + 1),
        lr=(3e-4,),
        scalars={"loss": 2.5 / number},
        rng={"torch": number.to_bytes(16, "big")},
    )


def write_run(run: RunDir, count: int) -> tuple[Path, StreamId]:
    """A dead process's run with one long stream, followed as a training process follows its own."""
    run.create()
    holder = msgspec.structs.replace(identity(), pid=2**22, started=1.0)
    entry = recovery.begin_attempt(run, holder).entry
    stream = StreamId(entry.number, entry.nonce, "rank-0")
    path = run.stream(*stream)
    first = events.AttemptBegun(
        run=run.name, attempt=entry.number, nonce=entry.nonce, writer="rank-0", rank=0
    )
    journal = Journal.create(path, attempt=entry.number, first=first)
    follower = checkpoints.Follower(path, stream)
    for number in range(1, count):
        journal.append(step(number))
        if number % 50_000 == 0:
            journal.sync()
            follower.catch_up(journal.durable)
    journal.append(events.Resumed(step=0))
    journal.close()
    return path, stream


def fold_rate(path: Path, stream: StreamId, count: int) -> float:
    """Events folded a second, from decoded events."""
    key = StreamKey(*stream)
    with Reader(path) as reader:
        batch = [pair for pair, _ in zip(reader.read(), range(count), strict=False)]
    began = time.perf_counter()
    fold((), {key: batch})
    return len(batch) / (time.perf_counter() - began)


def command(run: RunDir, *arguments: str) -> Sample:
    environ = {**as_installed(run.root / "bytecode"), "WALRECOVER_DIR": str(run.root)}
    line = [sys.executable, "-m", "walrecover.cli", *arguments]

    def call() -> None:
        subprocess.run(line, env=environ, check=False, stdout=subprocess.DEVNULL)

    call()
    return sample(timed(call, 9))


def rows(count: int = EVENTS) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        run = RunDir(Path(name) / "wal", "long")
        path, stream = write_run(run, count)
        rates = [
            fold_rate(path, stream, min(part, count)) for part in (count // 10, count // 3, count)
        ]
        start = command(run, "--version")
        found = command(run, "replay", "--json")
        status = command(run, "status", "--json")
        full = timed(lambda: _without_checkpoint(run, path), 1)[0]
    over = found.median - start.median
    shown = ", ".join(f"{rate / 1e6:.2f}" for rate in rates)
    return [
        Row(
            f"fold, events/s at {count // 10:,}, {count // 3:,} and {count:,}",
            f"{shown} M/s",
            "",
            None,
            "≥ 0.5 M/s, linear",
            min(rates) >= FOLD_BOUND,
        ),
        Row(
            f"replay of {count:,} events, beyond process start",
            str(found),
            f"--version {start}",
            None,
            "+ ≤ 50 ms",
            over <= FIND_BOUND,
        ),
        Row(
            f"status of a run of {count:,} events",
            str(status),
            "",
            None,
            "≤ 1 s",
            status.median <= STATUS_BOUND,
        ),
        Row("the same fold without its checkpoint", duration(full), "", None, "", None),
    ]


def _without_checkpoint(run: RunDir, path: Path) -> None:
    checkpoints.path_of(path).unlink()
    recovery.fold_run(run)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=EVENTS)
    raise SystemExit(not show("Recovery of a long run", rows(parser.parse_args().events)))
