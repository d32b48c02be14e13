"""What following costs: events a second from journals into the read model, rows and cursor with
them, beside a bare reading of the same journals in the same run.

    python -m tests.bench daemon
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path

from tests.bench.bench_journal import small
from tests.bench.measure import Row, at_most, sample
from tests.support.protocol import Launch
from walrecover.events import LoopStalled
from walrecover.journal import Reader, find_streams
from walrecover.rundir import RunDir
from walrecover_daemon.finding import Finder
from walrecover_daemon.following import Follower
from walrecover_daemon.reading import CHUNK, Readers
from walrecover_daemon.readmodel import ReadModel

EVENTS = 60_000
"""Of each rank's stream; one in a hundred is no step."""

BOUND = 100_000
"""Events a second."""


def grow(root: Path, world: int = 2) -> RunDir:
    run = RunDir(root, "bench")
    with Launch.begin(run, world=world) as launch:
        for step in range(1, EVENTS + 1):
            for journal in launch.journals:
                journal.append(small(step))
                if step % 100 == 0:
                    journal.append(LoopStalled(at=1.75e9 + step, step=step, seconds=0.1))
    return run


def follow(root: Path, path: Path) -> int:
    """Catch up from nothing; returns the events."""
    readmodel = ReadModel(path, "bench")
    finder = Finder([root], None)
    follower = Follower(readmodel, finder, Readers(lambda path: None))
    stirred = follower.recall() + list(finder.changed(finder.places()))
    while stirred:
        stirred = follower.follow(stirred)
    follower.close()
    readmodel.close()
    return follower.read


def read(run: RunDir) -> int:
    count = 0
    for stream, path in find_streams(run.journal):
        with Reader(path, stream, chunk=CHUNK) as reader:
            for events, _ in reader.batches():
                count += len(events)
    return count


def rows(rounds: int = 5) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / ".walrecover"
        run = grow(root)
        ours, peer, busy = [], [], []
        for number in range(rounds):
            gc.collect()
            began = time.perf_counter()
            events = read(run)
            peer.append((time.perf_counter() - began) / events)
            began, used = time.perf_counter(), time.process_time()
            assert follow(root, Path(name) / f"{number}.db") == events
            ours.append((time.perf_counter() - began) / events)
            busy.append((time.process_time() - used) / events)
        found = sample(ours)
        rate = 1 / found.median
        size = (Path(name) / "0.db").stat().st_size / events
        return [
            Row(
                f"catching up with {events} events, rows and all, events a second",
                f"{rate:,.0f}",
                "",
                None,
                f"≥ {BOUND:,}",
                rate >= BOUND,
            ),
            Row(
                "the same, in a second of the processor's time",
                f"{1 / sample(busy).median:,.0f}",
                "",
                None,
                "",
                None,
            ),
            at_most("an event followed, beside an event read", found, sample(peer), 10.0),
            Row("the read model grows by an event", f"{size:.0f} B", "", None, "", None),
        ]
