"""Times and counts that no calendar and no column holds: a clock that jumps, a broken counter, a
hostile writer. Whatever a run's journals say, all other runs are followed, and every page is made.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import readmodels
from tests.support.protocol import Launch, holder
from walrecover import events as ev
from walrecover.rundir import RunDir
from walrecover.state import StreamKey
from walrecover_daemon import curves, metrics, pages, stacks
from walrecover_daemon.asking import Asking
from walrecover_daemon.keeper import Heard

times = st.one_of(
    st.sampled_from([0.0, 1.0, 1.8e9, -1.0, 1e11, 1e18, 1e300, -1e300, math.inf, math.nan]),
    st.floats(),
)  # fmt: skip
counts = st.sampled_from([0, 1, 3, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
scalars = st.dictionaries(st.sampled_from(["loss", "", "grad"]), times, max_size=2)
files = st.tuples(
    st.builds(ev.WrittenFile, name=st.just("x"), bytes=counts, digest=st.just("blake3:x"))
)

of_ranks = st.one_of(
    st.builds(ev.StepCompleted, at=times, step=counts, epoch=counts, scalars=scalars,
              lr=st.tuples(times), grad_norm=times),
    st.builds(ev.ScalarsArrived, at=times, step=counts, scalars=scalars),
    st.builds(ev.ShardsWritten, at=times, step=counts, seconds=times, files=files),
    st.builds(ev.SnapshotCommitted, at=times, step=counts, manifest=st.just("x")),
    st.builds(ev.Resumed, at=times, step=counts),
    st.builds(ev.ResumeDiverged, at=times, step=counts, what=st.just("x"), before=st.just("1"),
              after=st.just("2")),
    st.builds(ev.ExceptionRaised, at=times, step=counts, kind=st.just("x")),
    st.builds(ev.RunStopped, at=times, step=counts),
)  # fmt: skip
of_supervisors = st.one_of(
    st.builds(ev.WorkerExited, at=times, pid=counts, cause=st.just("crash"), seen=times),
    st.builds(ev.RestartDecided, at=times, action=st.just("restart"), delay=times,
              reason=st.just("")),
    st.builds(ev.HangDetected, at=times, phase=st.just("step"), seconds=times, limit=times,
              rank=counts, step=counts),
)  # fmt: skip


@settings(max_examples=25)
@example(
    [ev.StepCompleted(at=math.inf, step=2**64 - 1)],
    [ev.WorkerExited(at=1e300, pid=2**64 - 1, cause="crash")],
)
@given(st.lists(of_ranks, max_size=4), st.lists(of_supervisors, max_size=3))
def test_no_number_in_a_journal_ends_the_follower_or_a_page(
    by_rank: list[ev.Event], by_supervisor: list[ev.Event]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, path = Path(name) / ".walrecover", Path(name) / "read-model.db"
        run, good = RunDir(root, "any"), RunDir(root, "good")
        with Launch.begin(run, world=1) as first:
            first.train(2)
            entry = first.entry
            key = StreamKey(entry.number, entry.nonce, "supervisor")
            with readmodels.open_stream(run, key) as notes:
                write(notes, by_supervisor)
            write(first.journals[0], by_rank)
        with Launch.begin(run, holder(2), world=1) as second:
            write(second.journals[0], by_rank)
        with Launch.begin(good, world=1) as launch:
            launch.train(3)
        readmodels.follow_once(root, path)
        readmodels.agrees(path, good)
        every_page_is_made(Asking(path))


def write(journal: Any, events: list[ev.Event]) -> None:
    for event in events:
        journal.append(event)


def every_page_is_made(asking: Asking) -> None:
    runs = asking.runs()
    assert {run["name"] for run in runs} == {"any", "good"}
    assert pages.overview(runs, len(runs), (), 1.8e9)
    assert metrics.exposition(asking, Heard())
    for run in runs:
        number, attempts = run["id"], asking.attempts(run["id"])
        about = pages.About(
            run, attempts, asking.recoveries(number), asking.snapshots(number),
            asking.events(number), asking.problems(number), [run], "",
            stacks.of_run(run["root"], run["name"], attempts), 1.8e9,
        )  # fmt: skip
        assert pages.about(about)
        assert msgspec.json.encode(curves.curve(asking.parts(number)))
