"""The read model is the fold of the journals, whatever happened and wherever the daemon died."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support import readmodels
from tests.support.protocol import attempt, committed, nonce_of, reference
from walrecover import events as ev
from walrecover.entries import Entry, Rejected
from walrecover.journal import Journal
from walrecover.rundir import RunDir
from walrecover.state import StreamKey
from walrecover_daemon.readmodel import ReadModel

small = st.integers(1, 12)
moment = st.floats(0.0, 60.0)
number = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0.0, 4.0))
scalars = st.dictionaries(st.sampled_from(["loss", "val_loss", "accuracy"]), number, max_size=3)
text = st.sampled_from(["", "out of memory", "<b>&'\"\x00\u2028"])
event = st.one_of(
    st.builds(ev.StepCompleted, at=moment, step=small, epoch=small, scalars=scalars),
    st.builds(ev.StepCompleted, at=moment, step=st.integers(250, 260), scalars=scalars),
    st.builds(ev.ScalarsArrived, at=moment, step=small, scalars=scalars),
    st.builds(ev.Resumed, at=moment, step=small, seconds=moment),
    st.builds(ev.PlaceReached, at=moment, step=small),
    st.builds(ev.LoopStalled, at=moment, step=small, seconds=moment, commit=st.booleans()),
    st.builds(ev.SnapshotVerified, at=moment, step=small, manifest=st.sampled_from(
        [reference(step, n).manifest for step in (3, 7) for n in (1, 2, 3)])),
    st.builds(ev.ShardsWritten, at=moment, step=small, seconds=moment, files=st.just(
        (ev.WrittenFile("a", 7, "blake3:0"),))),
    st.builds(ev.WorkerExited, at=moment, pid=small, cause=text, evidence=text, seen=moment),
    st.builds(ev.RestartDecided, at=moment, action=st.sampled_from(["restart", "stop"]),
              delay=moment, reason=text),
    st.builds(ev.ExceptionRaised, at=moment, kind=text, message=text),
    st.builds(ev.ResumeVerified, at=moment, base=small, tier=st.just("exact")),
    st.builds(ev.ResumeDiverged, at=moment, step=small, what=text, before=text, after=text),
    st.builds(ev.RunStopped, at=moment, step=small),
    st.builds(ev.RunFinished, at=moment, step=small),
)  # fmt: skip
keys = [StreamKey(n, nonce_of(n), writer) for n in (1, 2, 3) for writer in ("rank-0", "supervisor")]


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    """Up to three attempts, each beginning at some commit made before it, or afresh."""
    entries: list[Entry] = [attempt(1)]
    known = []
    for n in range(1, draw(st.integers(1, 3)) + 1):
        if n > 1:
            base = draw(st.sampled_from([None, *known]))
            passed = [ref for ref in known if ref != base][:1]
            rejected = tuple(Rejected(r.step, r.attempt, r.manifest, "torn") for r in passed)
            entries.append(attempt(n, base, rejected=rejected))
        for step in sorted(draw(st.sets(st.sampled_from([3, 7, 11]), max_size=2))):
            entries.append(committed(step, n, finished=draw(st.booleans())))
            known.append(reference(step, n))
    return entries


class Growing:
    """A run on disk that grows: its entries and streams come in pieces."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder / ".walrecover", "drawn")
        self.entries = 0
        self.journals: dict[StreamKey, Journal] = {}

    def enter(self, entries: list[Entry]) -> None:
        readmodels.write_entries(self.run, entries)

    def append(self, key: StreamKey, events: list[ev.Event]) -> None:
        if key not in self.journals:
            self.journals[key] = readmodels.open_stream(self.run, key)
        for one in events:
            self.journals[key].append(one)
        self.journals[key].sync()


@contextmanager
def growing() -> Iterator[tuple[Path, Growing]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        found = Growing(Path(name))
        stack.callback(lambda: [journal.close() for journal in found.journals.values()])
        yield Path(name), found


@contextmanager
def interrupted(readmodel: ReadModel, after: int) -> Iterator[None]:
    """SQLite gives up after so many times 20 of its instructions: in the middle of anything."""
    left = [after]

    def count() -> bool:
        left[0] -= 1
        return left[0] < 0

    readmodel.conn.set_progress_handler(count, 20)
    try:
        with suppress(sqlite3.OperationalError):
            yield
    finally:
        readmodel.conn.set_progress_handler(None, 0)


@settings(
    max_examples=settings().max_examples // 4, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(histories(), st.lists(
    st.tuples(st.sampled_from(keys), st.lists(event, max_size=6),
              st.sampled_from(["lives", "dies", "dies inside", "fails inside", "settles"])),
    max_size=7,
), st.data())  # fmt: skip
def test_the_read_model_is_the_fold_of_any_history_after_any_crash_of_the_daemon(
    entries: list[Entry],
    pieces: list[tuple[StreamKey, list[ev.Event], str]],
    data: st.DataObject,
) -> None:
    with growing() as (folder, run):
        root, path = run.run.root, folder / "read-model.db"
        run.enter(entries[:1])
        readmodel, finder, follower = readmodels.opened(root, path)
        for place, (key, events, what) in enumerate(pieces):
            run.enter(entries[: 1 + place])
            run.append(key, events)
            if what.endswith("inside"):
                with interrupted(readmodel, data.draw(st.integers(0, 60))):
                    readmodels.catch_up(finder, follower)
            else:
                readmodels.catch_up(finder, follower, settle=what == "settles")
            if what.startswith("dies"):
                readmodel.close()
                readmodel, finder, follower = readmodels.opened(root, path)
        run.enter(entries)
        readmodels.catch_up(finder, follower)
        readmodels.agrees(path, run.run)
        follower.close()
        readmodel.close()
        readmodels.follow_once(root, folder / "anew.db")
        assert readmodels.dump(folder / "anew.db") == readmodels.dump(path)


def test_steps_that_are_no_ranks_move_no_attempt(tmp_path: Path) -> None:
    """Drawn once: what a batch of steps alone changes is written before the story is told again."""
    run = Growing(tmp_path)
    run.enter([attempt(1), attempt(2)])
    ours, theirs = StreamKey(1, nonce_of(1), "rank-0"), StreamKey(1, nonce_of(1), "supervisor")
    run.append(ours, [ev.StepCompleted(at=30.0, step=7)])
    run.append(theirs, [ev.RunStopped(at=50.0, step=7)])
    path = tmp_path / "read-model.db"
    readmodel, finder, follower = readmodels.opened(run.run.root, path)
    readmodels.catch_up(finder, follower)
    run.append(theirs, [ev.StepCompleted(at=40.0, step=259)])
    readmodels.catch_up(finder, follower)
    readmodels.agrees(path, run.run)
    (row,) = readmodels.rows(path, "SELECT last_step FROM attempts WHERE number = 1")
    assert row["last_step"] == 7
    follower.close()
    readmodel.close()
    for journal in run.journals.values():
        journal.close()


def test_a_history_that_is_read_twice_would_be_noticed(tmp_path: Path) -> None:
    """The test of the test."""
    run = Growing(tmp_path)
    run.enter([attempt(1)])
    run.append(keys[0], [ev.StepCompleted(step=1), ev.Resumed(step=0)])
    path = tmp_path / "read-model.db"
    readmodels.follow_once(run.run.root, path)
    readmodels.agrees(path, run.run)
    run.append(keys[0], [ev.StepCompleted(step=2)])
    with pytest.raises(AssertionError):
        readmodels.agrees(path, run.run)
    run.journals[keys[0]].close()
