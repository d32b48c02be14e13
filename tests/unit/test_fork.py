"""A fork: whole or absent, and its parent as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.protocol import (
    Launch,
    candidates,
    check_state,
    entries_of,
    holder,
)
from tests.support.reading import OPENED, step_of
from walrecover import entries as model
from walrecover import failpoints, lineage, past, snapshot
from walrecover.entries import Ancestor, Skip, SnapshotRef
from walrecover.errors import BadInput, Corrupt, StorageFailed
from walrecover.failpoints import FailpointReached
from walrecover.fork import fork
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir, list_runs

POINTS = [name for name in failpoints.NAMES if name.startswith("fork.")]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two attempts: steps 1 to 6 of the first, of which 5 and 6 are lost, and 5 to 10."""
    made = RunDir(tmp_path / ".walrecover", "a-run")
    _train(made, 2, 4, 6)
    victim = candidates(made)[0]
    (made.snapshots / victim.name / "rank-00001.safetensors").write_bytes(b"")
    _train(made, 8, 10)
    return made


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def _train(run: RunDir, *saved: int) -> None:
    with Launch.begin(run) as launch:
        for journal in launch.journals:
            journal.append(OPENED)
        for at in saved:
            while launch.step < at:
                launch.step += 1
                for rank, journal in enumerate(launch.journals):
                    journal.append(step_of(launch.step, rank))
            launch.save()


def contents(folder: Path) -> dict[str, bytes]:
    # LMDB's lock file is the readers' own, and a fold's checkpoint is a cache.
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock.mdb" and path.suffix != ".fold"
    }


def at(run: RunDir, step: int) -> SnapshotRef:
    return next(ref for ref in candidates(run) if ref.step == step)


def test_a_fork_goes_on_from_the_snapshot_and_its_parent_stays_as_it_was(run: RunDir) -> None:
    before = contents(run.path)
    made = fork(run, 8, name="b")
    assert contents(run.path) == before
    assert list_runs(run.root) == ["b", "a-run"]
    assert candidates(made.run) == [at(run, 8)]
    check_state(made.run, at(run, 8))
    begun = begin_attempt(made.run, holder())
    assert begun.entry.number == 3
    assert begun.entry.plan.base == at(run, 8)
    assert begun.line == "run b: attempt 3 resumes after step 8"
    launch = Launch(made.run, begun.entry)
    launch.open()
    launch.train(3)
    launch.save()
    assert [ref.step for ref in candidates(made.run)] == [11, 8]
    assert contents(run.path) == before


def test_its_history_is_linked_to_its_parents(run: RunDir) -> None:
    made = fork(run, 8, name="b")
    first, second = (e for e in entries_of(run) if isinstance(e, model.AttemptEntry))
    behind = (
        Ancestor("a-run", 2, second.nonce, 4, 8),
        Ancestor("a-run", 1, first.nonce, 0, 4),
    )
    assert made.origin.history == behind
    assert (made.origin.parent, made.origin.snapshot) == ("a-run", at(run, 8))
    _train(made.run, 9, 12)
    again = fork(made.run, 12, name="c")
    assert again.origin.history[1:] == behind
    gaps: list[str] = []
    told = list(past.read(again.run, lineage.history("c", entries_of(again.run)), gaps))
    steps = [
        t.event.step for t in told if t.rank == 1 and type(t.event).__name__ == "StepCompleted"
    ]
    assert (steps, gaps) == (list(range(1, 13)), [])


def test_a_parent_whose_journal_is_gone_is_named(run: RunDir) -> None:
    made = fork(run, 8, name="b")
    os.rename(run.journal, run.path / "elsewhere")
    gaps: list[str] = []
    assert list(past.read(made.run, lineage.history("b", entries_of(made.run)), gaps)) == []
    assert len(gaps) == 2 and gaps[0].endswith("of run a-run is missing")


def test_a_skip_is_in_the_origin_and_in_every_plan(run: RunDir) -> None:
    made = fork(run, 8, name="b", skips=((66, 70),))
    skip = Skip(0, 0, 64, 72, "by order")
    assert made.origin.skips == (skip,)
    assert begin_attempt(made.run, holder()).entry.plan.skips == (skip,)
    assert begin_attempt(made.run, holder()).entry.plan.skips == (skip,)
    assert begin_attempt(made.run, holder(), resume="never").entry.plan.skips == ()
    other = fork(fork(run, 8, name="c", skips=((64, 72),)).run, 8, name="d", skips=((72, 80),))
    assert [(s.begin, s.end) for s in other.origin.skips] == [(64, 72), (72, 80)]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (7, "run a-run has no snapshot of step 7: the nearest are of step 4 and step 8"),
        (6, "has no snapshot of step 6: the nearest are of step 4 and step 8"),
        (1, "has no snapshot of step 1: the nearest are of step 2"),
        (99, "has no snapshot of step 99: the nearest are of step 10"),
    ],
)
def test_a_step_without_a_snapshot_names_the_nearest_two(run: RunDir, step: int, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        fork(run, step)
    assert list_runs(run.root) == ["a-run"]


@pytest.mark.parametrize("wanted", [(16, 24), (79, 81), (60, 72)])
def test_a_skip_that_cannot_be_changes_nothing(run: RunDir, wanted: tuple[int, int]) -> None:
    before = contents(run.root)
    with pytest.raises(BadInput, match="--skip"):
        fork(run, 8, skips=(wanted,))
    assert contents(run.root) == before


def test_a_name_that_is_taken_is_refused(run: RunDir) -> None:
    fork(run, 8)
    before = contents(run.root)
    with pytest.raises(BadInput, match=r"a-run-at-8 is there already: choose another name"):
        fork(run, 8)
    with pytest.raises(BadInput, match="cannot name a run"):
        fork(run, 8, name="../b")
    assert contents(run.root) == before


def test_a_damaged_snapshot_is_not_forked(run: RunDir) -> None:
    path = run.snapshots / at(run, 8).name / "rank-00000.msgpack"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt, match=r"rank-00000\.msgpack has"):
        fork(run, 8)
    assert list_runs(run.root) == ["a-run"]
    assert [path.name for path in (run.root / "runs").iterdir()] == ["a-run"]


def test_where_there_are_no_hard_links_the_files_are_copied(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    made = fork(run, 8, name="b")
    monkeypatch.undo()
    check_state(made.run, at(run, 8))
    file = f"{at(run, 8).name}/rank-00000.safetensors"
    assert (made.run.snapshots / file).stat().st_nlink == 1


def test_the_parent_may_retire_what_a_fork_lives_from(run: RunDir) -> None:
    ref = at(run, 8)
    made = fork(run, 8, name="b")
    for path in (run.snapshots / ref.name).iterdir():
        path.unlink()
    snapshot.verify(made.run, ref)


def test_a_fork_retires_its_origin_as_any_other(run: RunDir) -> None:
    made = fork(run, 8, name="b")
    ref = at(run, 8)
    launch = Launch(made.run, begin_attempt(made.run, holder()).entry)
    launch.open()
    for _ in range(3):
        launch.train()
        launch.keep(launch.save())
    assert ref not in candidates(made.run)
    left = {path.suffix for path in (made.run.snapshots / ref.name).iterdir()}
    assert left == {".safetensors"}  # what has not changed since is referenced
    snapshot.verify(run, ref)  # its parent has it


@pytest.mark.parametrize("action", ["raise", "enospc"])
@pytest.mark.parametrize("name", POINTS)
def test_a_crash_leaves_a_whole_fork_or_none(run: RunDir, name: str, action: str) -> None:
    before = contents(run.path)
    failpoints.arm(f"{name}:{action}")
    with pytest.raises(StorageFailed if action == "enospc" else FailpointReached):
        fork(run, 8, name="b", skips=((64, 72),))
    failpoints.arm("")
    assert contents(run.path) == before
    if name == "fork.renamed":
        made = RunDir(run.root, "b")
    else:
        assert list_runs(run.root) == ["a-run"]
        made = fork(run, 8, name="b", skips=((64, 72),)).run
    assert begin_attempt(made, holder()).entry.plan.skips == (Skip(0, 0, 64, 72, "by order"),)
    check_state(made, at(run, 8))
