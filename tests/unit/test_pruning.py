"""Pruning a run on the disk: what goes, what stays, and a living training beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forks import Forks
from tests.support.protocol import Launch, candidates, check_state, entries_of, files_below
from tests.support.worker import REACHED, REFUSED, said
from walrecover import entries as model
from walrecover import failpoints, snapshot, verifying
from walrecover.errors import BadInput, Corrupt
from walrecover.pruning import prune
from walrecover.retention import Best, Rules
from walrecover.rundir import RunDir

TWO = Rules(keep_last=2)
POINTS = [
    name
    for name in failpoints.NAMES
    if name.startswith("sequence.") or name in ("snapshot.retired", "snapshot.deleting")
]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Steps 2, 4, … 12, all kept, and nothing referenced twice without need."""
    made = RunDir(tmp_path / ".walrecover", "a-run")
    with Launch.begin(made) as launch:
        for _ in range(6):
            launch.train(2)
            launch.save()
    return made


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


def steps(run: RunDir) -> list[int]:
    return [ref.step for ref in candidates(run)]


def folders(run: RunDir) -> set[str]:
    return {path.name for path in run.snapshots.iterdir()}


def check_whole(run: RunDir) -> None:
    assert [one for one in verifying.verify(run, entries_of(run)) if one.problem] == []
    for ref in candidates(run):
        check_state(run, ref)


def test_what_no_rule_keeps_goes_and_what_it_shared_stays(run: RunDir) -> None:
    before = {str(path): path.read_bytes() for path in files_below(run.snapshots)}
    done = prune(run, TWO, now=0.0)
    assert steps(run) == [12, 10]
    assert [ref.step for ref in done.retired] == [8, 6, 4, 2]
    check_whole(run)
    listed = {f for ref in candidates(run) for f in snapshot.files_of(run, ref)}
    left = {str(path.relative_to(run.snapshots)) for path in files_below(run.snapshots)}
    own = {
        f"{ref.name}/{name}"
        for ref in candidates(run)
        for name in os.listdir(run.snapshots / ref.name)
    }
    assert left == listed | own
    assert {f for f in listed if "step-00000002" in f or "step-00000004" in f}  # the frozen ones
    gone = before.keys() - {str(run.snapshots / name) for name in left}
    votes = sum(len(before[n]) for n in gone if n.endswith((".part", "manifest.json")))
    assert done.freed == sum(len(before[name]) for name in gone) - votes
    assert prune(run, TWO, now=0.0).retired == ()


def test_a_dry_run_says_the_same_and_changes_nothing(run: RunDir) -> None:
    before = {
        str(path): path.read_bytes() for path in files_below(run.path) if path.name != "lock.mdb"
    }
    dry = prune(run, TWO, now=0.0, dry_run=True)
    after = {
        str(path): path.read_bytes() for path in files_below(run.path) if path.name != "lock.mdb"
    }
    assert after == before
    assert dry.retired == ()
    done = prune(run, TWO, now=0.0)
    assert (done.verdicts, done.freed) == (dry.verdicts, dry.freed)
    assert [one.commit.snapshot for one in done.verdicts if not one.kept] == list(done.retired)


def test_the_metric_is_the_journals(run: RunDir) -> None:
    prune(run, Rules(keep_last=2, best=(Best("loss", "max"),)), now=0.0)
    assert steps(run) == [12, 10, 2]  # the loss falls: tests.support.protocol.completed
    with pytest.raises(BadInput, match="--best f1: no snapshot's step has that scalar"):
        prune(run, Rules(best=(Best("f1", "max"),)), now=0.0)
    next(run.journal.glob("*/rank-0/data.mdb")).unlink()
    done = prune(run, Rules(keep_last=2, best=(Best("loss", "min"),)), now=0.0)
    assert "the stream has no data.mdb" in done.gaps[0]
    assert steps(run) == [12, 10]  # rank 1's stream tells as well


def test_a_damaged_newest_snapshot_does_not_count_as_one_of_the_two(run: RunDir) -> None:
    newest = candidates(run)[0]
    (run.snapshots / newest.name / "rank-00001.msgpack").write_bytes(b"")
    done = prune(run, TWO, now=0.0)
    assert [one.name for one in done.damaged] == [newest.name]
    assert steps(run) == [12, 10, 8]
    for ref in candidates(run)[1:]:
        snapshot.verify(run, ref)


def test_where_no_two_verify_nothing_goes(run: RunDir) -> None:
    for ref in candidates(run)[1:]:
        (run.snapshots / ref.name / "rank-00001.msgpack").write_bytes(b"")
    before = entries_of(run)
    done = prune(run, TWO, now=0.0)
    assert (done.retired, entries_of(run), len(done.damaged)) == ((), before, 5)


def test_a_run_that_has_only_resumed_keeps_its_base(run: RunDir) -> None:
    with Launch.begin(run):
        done = prune(run, TWO, now=0.0)
    assert done.retired == () and len(steps(run)) == 6
    assert done.verdicts[-1].reason == "attempt 2 has no snapshot that was read back yet"


def test_a_sequence_that_cannot_be_read_is_not_pruned(run: RunDir) -> None:
    path = sorted(run.sequence.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Corrupt, match="sequence entry 2"):
        prune(run, TWO, now=0.0)
    assert len(folders(run)) == 6


@pytest.mark.parametrize("action", ["kill", "raise", "enospc"])
@pytest.mark.parametrize("name", POINTS)
def test_a_crash_leaves_what_can_be_pruned_again(
    forks: Forks, run: RunDir, name: str, action: str
) -> None:
    code = forks.call(
        "tests.support.worker:prune_run", root=str(run.root), armed=f"{name}:{action}"
    )
    entered = any(isinstance(entry, model.RetirementEntry) for entry in entries_of(run))
    assert code == {"kill": -signal.SIGKILL, "raise": REACHED}.get(action, code)
    assert code in (0, REFUSED) or action != "enospc"
    assert entered or name == "sequence.entry.written"
    check_whole(run)
    prune(run, TWO, now=0.0)
    assert steps(run) == [12, 10]
    check_whole(run)
    listed = {f.partition("/")[0] for ref in candidates(run) for f in snapshot.files_of(run, ref)}
    assert folders(run) == listed | {ref.name for ref in candidates(run)}


def test_two_who_delete_at_once_do_not_disturb_each_other(forks: Forks, run: RunDir) -> None:
    armed = "snapshot.deleting:stop"
    pid = forks.start("tests.support.worker:prune_run", root=str(run.root), armed=armed)
    assert forks.wait(pid) is None
    prune(run, TWO, now=0.0)
    assert forks.wake(pid) == 0
    assert steps(run) == [12, 10]
    check_whole(run)


def test_p10_beside_a_living_training_nothing_is_lost(forks: Forks, tmp_path: Path) -> None:
    """It keeps eight; somebody prunes to two all the time. What it acknowledged is there, what it
    references is there, and it never meets an error that it must stop for."""
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with Launch.begin(run) as launch:
        launch.train(2)
        launch.save()
    notes, stop = tmp_path / "notes", tmp_path / "stop"
    pruner = forks.start("tests.support.worker:prune_on", root=str(run.root), done=str(stop))
    trained = forks.call(
        "tests.support.worker:train", root=str(run.root), notes=str(notes), attempts=2,
        snapshots=15, retention=8,
    )  # fmt: skip
    stop.touch()
    assert (trained, forks.wait(pruner)) == (0, 0)
    check_whole(run)
    committed = said(notes).committed
    assert candidates(run)[0].manifest == committed[-1][1]
    retired = [e for e in entries_of(run) if isinstance(e, model.RetirementEntry)]
    assert len(candidates(run)) < 8 and len(retired) > 3
    assert len(committed) > 20
