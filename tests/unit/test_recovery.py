"""The recovery decision: newest first, fall back, refuse; one plan; nothing else changes."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.protocol import (
    Launch,
    candidates,
    check_state,
    entries_of,
    files_below,
    holder,
    recovery_point,
)
from tests.support.reading import OPENED, STEPS, step_of
from walrecover import entries as model
from walrecover import events as ev
from walrecover import failpoints, processes, recovery, snapshot
from walrecover.entries import Plan, Rewind, Skip, SnapshotRef
from walrecover.errors import Corrupt, Fenced, NothingToResume, RunBusy, StorageFailed
from walrecover.failpoints import FailpointReached
from walrecover.journal import Journal
from walrecover.processes import identity
from walrecover.recovery import begin_attempt, choose
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence

PLANS = ("recovery.folded", "recovery.verified", "recovery.planned")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    made.create()
    return made


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def saved(run: RunDir, *steps: int) -> list[SnapshotRef]:
    """One attempt that commits these steps and dies; nothing is retired."""
    with Launch.begin(run) as launch:
        refs = []
        for step in steps:
            launch.train(step - launch.step)
            refs.append(launch.save().snapshot)
        return refs


def damage(run: RunDir, ref: SnapshotRef) -> None:
    path = run.snapshots / ref.name / "rank-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def unreadable(monkeypatch: pytest.MonkeyPatch, *refs: SnapshotRef) -> None:
    """These snapshots cannot be read for now: nothing is known of their bytes."""
    real = snapshot.read_regular

    def read(root: Path, relative: str, limit: int) -> bytes:
        if any(relative.startswith(ref.name) for ref in refs):
            raise OSError(errno.EIO, "Input/output error")
        return real(root, relative, limit)

    monkeypatch.setattr(snapshot, "read_regular", read)


def supervisors_stream(run: RunDir, entry: model.AttemptEntry, path: Path) -> Journal:
    first = ev.AttemptBegun(
        run=run.name, attempt=entry.number, nonce=entry.nonce, writer="supervisor"
    )
    return Journal.create(path, attempt=entry.number, first=first)


def begin(run: RunDir, **options: str) -> Plan:
    return begin_attempt(run, holder(), **options).entry.plan


# --- what is chosen -----------------------------------------------------------------------------


def test_a_new_run_begins_at_the_beginning(run: RunDir) -> None:
    begun = begin_attempt(run, holder())
    assert (begun.entry.number, begun.entry.plan) == (1, Plan())
    assert begun.line == f"run a-run: new, in {run.path}"
    assert begin_attempt(run, holder()).line == "run a-run: attempt 2 starts from the beginning"


def test_the_newest_is_restored(run: RunDir) -> None:
    refs = saved(run, 2, 4, 6)
    begun = begin_attempt(run, holder())
    assert begun.entry.plan == Plan(base=refs[2], ranks=2)
    assert begun.line == "run a-run: attempt 2 resumes after step 6"


def test_a_damaged_one_is_passed_over_and_named(run: RunDir) -> None:
    refs = saved(run, 2, 4, 6)
    damage(run, refs[2])
    begun = begin_attempt(run, holder())
    assert begun.entry.plan.base == refs[1]
    (rejected,) = begun.entry.plan.rejected
    assert (rejected.step, rejected.attempt, rejected.confirmed) == (6, 1, True)
    assert "rank-00001.safetensors: the bytes of" in rejected.reason
    assert "step 6 was rejected: " in begun.line
    check_state(run, refs[1])


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda folder: shutil.rmtree(folder), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{}"), "not the one"),
        (lambda folder: (folder / "rank-00000.msgpack").unlink(), "is missing"),
        (lambda folder: os.truncate(folder / "rank-00000.safetensors", 9), "9 bytes"),
        (lambda folder: folder.rename(folder.with_name("x")) and folder.symlink_to("x"), "link"),
        (lambda folder: (folder / "rank-00000.msgpack").unlink()
            or (folder / "rank-00000.msgpack").symlink_to("rank-00001.msgpack"), "link"),
    ],
)  # fmt: skip
def test_every_reason_is_given(run: RunDir, harm: Callable[[Path], object], reason: str) -> None:
    refs = saved(run, 2, 4)
    harm(run.snapshots / refs[1].name)
    plan = begin(run)
    assert plan.base == refs[0]
    assert reason in plan.rejected[0].reason


def test_where_nothing_verifies_it_refuses(run: RunDir) -> None:
    refs = saved(run, 2, 4)
    for ref in refs:
        damage(run, ref)
    before = entries_of(run)
    with pytest.raises(Corrupt, match=r"no snapshot of run a-run verifies \(step 4: .*step 2: "):
        begin(run)
    assert entries_of(run) == before
    assert begin(run, resume="never") == Plan(fresh=True)


def test_a_damaged_sequence_is_refused(run: RunDir) -> None:
    saved(run, 2, 4)
    path = run.sequence / "00000002.json"
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 3'))
    with pytest.raises(Corrupt, match="sequence entry 2"):
        begin(run)
    path.unlink()
    with pytest.raises(Corrupt, match="sequence entry 2 is missing"):
        begin(run)


def test_at_or_before_a_step(run: RunDir) -> None:
    refs = saved(run, 2, 4, 6)
    found = entries_of(run)
    assert [choose(run, found, at=at).base for at in (7, 6, 5, 3, 1)] == [
        refs[2],
        refs[2],
        refs[1],
        refs[0],
        None,
    ]
    assert [c.snapshot.step for c in recovery.commits_at(found, 5)] == [4, 2]
    assert [c.snapshot.step for c in recovery.commits_at(found, None)] == [6, 4, 2]


def test_what_is_asked_for(run: RunDir) -> None:
    with pytest.raises(NothingToResume, match="no committed snapshot to resume from"):
        begin(run, resume="must")
    assert entries_of(run) == []
    refs = saved(run, 2)
    assert begin(run, resume="must").base == refs[0]
    assert begin(run, resume="never") == Plan(fresh=True)
    assert begin(run).base is None


# --- the chain ----------------------------------------------------------------------------------


def test_what_left_the_chain_never_returns(run: RunDir) -> None:
    first = saved(run, 2, 4)
    damage(run, first[1])
    second = saved(run, 3)
    assert candidates(run) == [second[0], first[0]]
    shutil.copytree(
        run.snapshots / first[0].name, run.snapshots / first[1].name, dirs_exist_ok=True
    )
    for ref in second:
        damage(run, ref)
    plan = begin(run)
    assert plan.base == first[0]
    assert [r.step for r in plan.rejected] == [3]


def test_an_attempt_that_committed_nothing_changes_nothing(run: RunDir) -> None:
    refs = saved(run, 2, 4)
    for _ in range(3):
        with Launch.begin(run) as launch:
            launch.train(3)
            launch.vote(0)
    assert begin(run) == Plan(base=refs[1], ranks=2)


def test_confirmed_damage_is_not_read_again(run: RunDir) -> None:
    """It is off the chain; mending it later brings nothing back (rules 3 and 5)."""
    refs = saved(run, 2, 4)
    path = run.snapshots / refs[1].name / "rank-00001.safetensors"
    good = path.read_bytes()
    damage(run, refs[1])
    assert begin(run).base == refs[0]
    path.write_bytes(good)
    assert begin(run) == Plan(base=refs[0], ranks=2)


def test_what_could_only_not_be_read_is_tried_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = saved(run, 2, 4, 6)
    damage(run, refs[1])
    with monkeypatch.context() as patch:
        unreadable(patch, refs[2])
        for _ in range(2):
            plan = begin(run)
            assert plan.base == refs[0]
            assert [r.confirmed for r in plan.rejected if r.step == 6] == [False]
    assert begin(run) == Plan(base=refs[2], ranks=2)
    assert recovery_point(run) == refs[2]


def test_what_was_committed_since_is_not_given_up_for_a_retry(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = saved(run, 2, 6)
    with monkeypatch.context() as patch:
        unreadable(patch, refs[1])
        since = saved(run, 3)
    assert begin(run) == Plan(base=since[0], ranks=2)


def test_what_turns_out_to_be_damaged_is_not_tried_a_third_time(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = saved(run, 2, 6)
    with monkeypatch.context() as patch:
        unreadable(patch, refs[1])
        begin(run)
    damage(run, refs[1])
    assert [r.confirmed for r in begin(run).rejected] == [True]
    assert begin(run) == Plan(base=refs[0], ranks=2)


def test_where_nothing_can_be_read_it_refuses(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = saved(run, 2, 4)
    before = entries_of(run)
    with monkeypatch.context() as patch:
        unreadable(patch, *refs)
        with pytest.raises(Corrupt, match=r"cannot be read: .*Input/output error"):
            begin(run)
    assert entries_of(run) == before
    assert begin(run).base == refs[1]


def test_retired_snapshots_are_not_chosen(run: RunDir) -> None:
    with Launch.begin(run) as launch:
        refs = []
        for _ in range(4):
            launch.train(1)
            refs.append(launch.save())
            launch.keep(refs[-1])
    for ref in (refs[3], refs[2]):
        shutil.rmtree(run.snapshots / ref.snapshot.name)
    with pytest.raises(Corrupt, match="no snapshot of run a-run verifies"):
        begin(run)


# --- who holds the run --------------------------------------------------------------------------


def test_a_living_holder_is_named(run: RunDir) -> None:
    mine = processes.identity()
    begin_attempt(run, mine)
    before = entries_of(run)
    with pytest.raises(RunBusy, match=f"held by pid {mine.pid} on {mine.host}, which is alive"):
        begin_attempt(run, holder())
    assert entries_of(run) == before


def test_the_same_process_may_begin_again(run: RunDir) -> None:
    for number in (1, 2):
        assert begin_attempt(run, processes.identity()).entry.number == number


def test_the_workers_of_one_supervisor_are_one_holder(run: RunDir) -> None:
    mine = msgspec.structs.replace(processes.identity(), supervisor="s1")
    begin_attempt(run, mine)
    begin_attempt(run, msgspec.structs.replace(holder(), supervisor="s1"))
    begin_attempt(run, mine)
    with pytest.raises(RunBusy):
        begin_attempt(run, msgspec.structs.replace(holder(), supervisor="s2"))


def test_a_dead_holder_holds_nothing(run: RunDir) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            begin_attempt(run, processes.identity())
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert begin_attempt(run, processes.identity()).entry.number == 2


def test_another_process_with_the_holders_pid_is_not_the_holder(run: RunDir) -> None:
    mine = processes.identity()
    begin_attempt(run, msgspec.structs.replace(mine, started=mine.started - 1))
    assert begin_attempt(run, mine).entry.number == 2


# --- crashing in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("times", [1, 3])
def test_crashing_in_recovery_any_number_of_times_ends_in_the_same_plan(
    run: RunDir, name: str, times: int
) -> None:
    refs = saved(run, 2, 4, 6)
    damage(run, refs[2])
    for _ in range(times):
        failpoints.arm(f"{name}:raise")
        with pytest.raises(FailpointReached):
            begin(run)
    failpoints.arm("")
    assert begin(run).base == refs[1]
    assert recovery_point(run) == refs[1]


def test_it_changes_nothing_but_the_sequence_by_one_entry(run: RunDir) -> None:
    saved(run, 2, 4)
    before = {path: path.read_bytes() for path in files_below(run.path)}
    begin(run)
    after = {path: path.read_bytes() for path in files_below(run.path)}
    locks = {path for path in after if path.name == "lock.mdb"}
    changed = {path for path in after if after[path] != before.get(path)} - locks
    assert changed == {run.sequence / f"{len(entries_of(run)):08d}.json"}
    assert before.keys() <= after.keys()


@pytest.mark.parametrize("error", [StorageFailed("no child"), OSError(errno.EMFILE, "?")])
def test_a_fold_that_fails_enters_nothing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    saved(run, 2)
    before = entries_of(run)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(recovery, "examine_all", fail)
    with pytest.raises(type(error)):
        begin(run)
    assert entries_of(run) == before


# --- what is told -------------------------------------------------------------------------------


def test_steps_behind_the_base_are_told(run: RunDir) -> None:
    with Launch.begin(run) as launch:
        launch.train(4)
        launch.save()
        launch.train(3)
    begun = begin_attempt(run, holder())
    assert (begun.event.last_step, begun.event.lost_steps) == (7, 3)
    assert begun.line.endswith("resumes after step 4, 3 completed steps are done again")


def test_a_finished_run_is_told(run: RunDir) -> None:
    with Launch.begin(run) as launch:
        launch.train(4)
        launch.save()
        finished = launch.save(end=True, finished=True).snapshot
    assert begin_attempt(run, holder()).line.endswith("after step 4 (finished)")
    damage(run, finished)
    assert "(finished)" not in begin_attempt(run, holder()).line


def test_damage_in_a_journal_is_named_and_changes_nothing(run: RunDir) -> None:
    refs = saved(run, 2, 4)
    entry = model.attempts(entries_of(run))[0]
    path = run.stream(entry.number, entry.nonce, "rank-1") / "data.mdb"
    os.truncate(path, 4096)
    begun = begin_attempt(run, holder())
    assert begun.entry.plan == Plan(base=refs[1], ranks=2)
    assert any("rank-1 of attempt 1" in loss for loss in begun.event.losses)


def test_the_fold_of_a_run(run: RunDir) -> None:
    saved(run, 2, 4)
    saved(run, 6)
    state = recovery.fold_run(run)
    assert [record.last_step for record in state.records.values()] == [4, 4, 6, 6]
    assert [(link.attempt, last) for link, last in state.surviving()] == [(1, 4), (2, 6)]
    assert state.superseded() == {} and not any(r.losses for r in state.records.values())
    assert recovery.fold_run(run, ()).entries == ()


def test_how_far_an_attempt_came(run: RunDir) -> None:
    with Launch.begin(run) as launch:
        launch.train(3)
    begun = begin_attempt(run, holder())
    assert recovery.progress(run, launch.entry) == (True, 3)
    assert recovery.progress(run, begun.entry) == (False, 0)


def test_a_run_directory_is_read_as_it_lies(run: RunDir) -> None:
    """Hostile names, links and other files are nobody's streams or snapshots."""
    refs = saved(run, 2)
    (run.journal / "a9-link").symlink_to(run.journal)
    (run.journal / "file").write_bytes(b"")
    (run.snapshots / "step-00000099.a1-0").symlink_to(run.snapshots / refs[0].name)
    os.mkfifo(run.path / "fifo")
    assert begin(run) == Plan(base=refs[0], ranks=2)


def test_a_shard_that_lies_behind_a_fifo_does_not_hang_it(run: RunDir) -> None:
    refs = saved(run, 2, 4)
    path = run.snapshots / refs[1].name / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    assert begin(run).base == refs[0]


def test_a_supervisor_that_somebody_succeeded_is_fenced_even_if_that_one_is_dead(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path, "run")
    run.create()
    mine = msgspec.structs.replace(identity(), supervisor="mine")
    recovery.begin_attempt(run, mine)
    with pytest.raises(RunBusy):  # alive: not even the first time
        recovery.begin_attempt(run, holder())
    recovery.begin_attempt(run, msgspec.structs.replace(holder(), supervisor="mine"))
    recovery.begin_attempt(run, holder(2))
    with pytest.raises(Fenced, match="took the run over"):
        recovery.begin_attempt(run, mine, succeeding=True)
    assert recovery.begin_attempt(run, mine).entry.number == 4


# --- rewinding ----------------------------------------------------------------------------------


def test_a_rewind_restores_the_one_before_and_says_what_it_left_behind(run: RunDir) -> None:
    refs = saved(run, 2, 4, 6)
    begun = begin_attempt(run, holder(), rewind="numeric")
    assert begun.entry.plan.base == refs[1]
    (left,) = begun.entry.plan.rejected
    assert (left.step, left.reason, left.confirmed) == (6, "left behind: numeric", True)
    assert begun.entry.plan.rewind == Rewind(7, "numeric")
    assert begun.line.endswith(
        "; step 6 was rejected: left behind: numeric; it goes back to before step 7 (numeric)"
    )


def test_what_a_rewind_left_behind_never_returns_and_rewinding_again_goes_further(
    run: RunDir,
) -> None:
    refs = saved(run, 2, 4, 6)
    assert begin(run, rewind="numeric").base == refs[1]
    assert begin(run).base == refs[1]
    assert begin(run, rewind="numeric").base == refs[0]
    assert begin(run).base == refs[0]


def test_where_there_is_nothing_older_the_newest_is_restored(run: RunDir) -> None:
    (ref,) = saved(run, 2)
    assert begin(run, rewind="numeric") == Plan(base=ref, ranks=2, rewind=Rewind(3, "numeric"))


def test_a_rewind_passes_over_damage(run: RunDir) -> None:
    refs = saved(run, 2, 4, 6)
    damage(run, refs[1])
    plan = begin(run, rewind="numeric")
    assert plan.base == refs[0]
    assert [rejected.step for rejected in plan.rejected] == [6, 4]


def test_a_rewind_to_nothing_but_damage_keeps_the_newest(run: RunDir) -> None:
    refs = saved(run, 2, 4)
    damage(run, refs[0])
    assert begin(run, rewind="numeric") == Plan(base=refs[1], ranks=2, rewind=Rewind(5, "numeric"))


def test_crashing_in_a_rewind_any_number_of_times_ends_in_the_same_base(
    run: RunDir,
) -> None:
    refs = saved(run, 2, 4, 6)
    for name in ("recovery.folded", "recovery.verified"):
        failpoints.arm(f"{name}:raise")
        with pytest.raises(FailpointReached):
            begin(run, rewind="numeric")
        failpoints.arm("")
    assert begin(run, rewind="numeric").base == refs[1]


def trained(run: RunDir, *saved: int, bad: int = 0, last: int) -> list[SnapshotRef]:
    """One attempt through step `last`, whose loss is NaN from step `bad` on."""
    with Launch.begin(run) as launch:
        refs = []
        for journal in launch.journals:
            journal.append(OPENED)
        while launch.step < last:
            launch.step += 1
            loss = math.nan if 0 < bad <= launch.step else 1.0
            for rank, journal in enumerate(launch.journals):
                journal.append(step_of(launch.step, rank, loss))
            if launch.step in saved:
                refs.append(launch.save().snapshot)
        return refs


def test_a_rewind_goes_back_to_before_the_loss_went_bad_and_leaves_out_what_was_read_since(
    run: RunDir,
) -> None:
    """Two snapshots were taken of what was bad by then."""
    refs = trained(run, 2, 4, 6, 8, bad=5, last=8)
    begun = begin_attempt(run, holder(), rewind="numeric")
    plan = begun.entry.plan
    assert plan.base == refs[1]
    assert [rejected.step for rejected in plan.rejected] == [8, 6]
    assert plan.rewind == Rewind(5, "loss is nan at step 5")
    assert plan.skips == (Skip(0, 0, 32, 40, "bad at step 5"),)
    assert begun.line.endswith(
        "it goes back to before step 5 (loss is nan at step 5), and leaves out positions 32 to 39 "
        "of pass 0"
    )


def test_a_snapshot_of_the_bad_step_itself_is_not_before_it(run: RunDir) -> None:
    refs = trained(run, 2, 4, 6, bad=6, last=7)
    assert begin(run, rewind="numeric").base == refs[1]


def test_data_is_left_out_only_where_it_may_be_to_blame(run: RunDir) -> None:
    trained(run, 2, 4, last=5)
    assert begin(run, rewind="crash").skips == ()
    assert begin(run, rewind="data").skips != ()


def test_what_is_left_out_reaches_back_to_the_base_over_the_end_of_a_pass(run: RunDir) -> None:
    trained(run, STEPS - 2, bad=STEPS + 1, last=STEPS + 1)
    assert [(s.epoch, s.begin, s.end) for s in begin(run, rewind="numeric").skips] == [
        (0, 64, 80),
        (1, 0, 8),
    ]


def test_a_step_that_was_not_completed_is_left_out_by_what_follows_the_one_before(
    run: RunDir,
) -> None:
    refs = trained(run, 2, 4, last=5)
    plan = begin(run, rewind="numeric")
    assert plan.base == refs[0]
    assert plan.skips == (Skip(0, 0, 16, 48, "bad at step 6"),)  # steps 3 to 5, and the sixth


def test_a_rewind_before_every_snapshot_begins_at_the_beginning_unless_some_were_retired(
    run: RunDir,
) -> None:
    trained(run, 4, 6, bad=2, last=6)
    shutil.copytree(run.root, run.root.parent / "other")
    plan = begin(run, rewind="numeric")
    assert (plan.base, plan.fresh) == (None, False)
    assert [(s.begin, s.end) for s in plan.skips] == [(0, 16)]
    assert begin(run) == Plan(skips=plan.skips)
    other = RunDir(run.root.parent / "other", "a-run")
    newest = candidates(other)[0]
    gone = model.RetirementEntry("0", 0.0, 1, entries_of(other)[0].nonce, ("blake3:0",))
    Sequence(other.sequence).settle(lambda _: gone)
    assert begin(other, rewind="numeric").base == newest


def test_what_is_left_out_is_inherited_and_added_to(run: RunDir) -> None:
    trained(run, 2, 4, bad=5, last=6)
    first = begin(run, rewind="numeric")
    assert begin(run).skips == first.skips
    trained(run, bad=5, last=5)  # again at the fifth step, on other data
    again = begin(run, rewind="numeric")
    assert again.base == first.base
    assert again.skips[: len(first.skips)] == first.skips


def test_a_decision_to_go_back_outlives_the_supervisor_that_took_it(run: RunDir) -> None:
    refs = saved(run, 2, 4)
    entry = entries_of(run)[0]
    path = run.stream(entry.number, entry.nonce, "supervisor")
    with supervisors_stream(run, entry, path) as journal:
        journal.append(ev.WorkerExited(pid=1, code=1, cause="numeric"))
        journal.append(ev.RestartDecided(action="rewind", delay=0.0, reason=""))
        journal.sync()
    plan = begin(run)
    assert (plan.base, plan.rewind) == (refs[0], Rewind(5, "numeric"))
    assert begin(run) == Plan(refs[0], ranks=2)  # it has been done


@pytest.mark.parametrize("point", ["sequence.entry.written", "sequence.entry.linked", *PLANS])
def test_a_crash_in_a_rewind_leaves_the_old_plan_or_all_of_the_new_one(
    run: RunDir, point: str
) -> None:
    refs = trained(run, 2, 4, 6, bad=5, last=6)
    failpoints.arm(f"{point}:raise")
    with pytest.raises(FailpointReached):
        begin(run, rewind="numeric")
    failpoints.arm("")
    newest = model.newest_attempt(entries_of(run))
    assert newest is not None
    entered = newest.number == 2
    assert entered == (point in ("sequence.entry.linked", "recovery.planned"))
    plan = begin(run, **({} if entered else {"rewind": "numeric"}))
    assert (plan.base, plan.skips) == (refs[1], (Skip(0, 0, 32, 40, "bad at step 5"),))
