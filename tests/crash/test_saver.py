"""The saver as a real process: whoever dies, and when, what was captured is saved whole or not at
all, and nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.arena import campaign
from tests.streams import read
from tests.support.capturing import Training
from tests.support.forks import Forks
from tests.support.protocol import FROZEN_BYTES, candidates, check_state, holder, recovery_point
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover import failpoints, snapshot
from walrecover.entries import AttemptEntry
from walrecover.processes import started_at
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.saver import messages as msg
from walrecover.saver.pace import Standing

CHILD = "tests.support.capturing:rank"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    made.create()
    return made


@pytest.fixture
def entry(run: RunDir) -> AttemptEntry:
    return begin_attempt(run, holder()).entry


class Notes:
    """What children said."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def savers(self) -> list[int]:
        return [int(word) for kind, word in self._lines() if kind == "saver"]

    def captured(self) -> list[int]:
        return [int(word) for kind, word in self._lines() if kind == "captured"]

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def child(forks: Forks, run: RunDir, notes: Notes, **how: object) -> int:
    given = {"rank": 0, "world": 1, "then": "captured"} | how
    return forks.start(CHILD, root=str(run.root), notes=str(notes.path), **given)


def await_end(pid: int) -> None:
    """The saver is nobody's child here: whoever it fell to reaps it."""
    wait_until(lambda: started_at(pid) is None)


def wake(pid: int) -> None:
    """Once it has stopped where its failpoint says."""
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    os.kill(pid, signal.SIGCONT)


def noted(run: RunDir, entry: AttemptEntry, rank: int = 0) -> list[ev.Event]:
    path = run.stream(entry.number, entry.nonce, f"saver-{rank}")
    return [event for _, event in read(path)] if path.exists() else []  # type: ignore[misc]


def check_nothing_is_left(run: RunDir) -> None:
    for folder in (run.snapshots, run.sequence):
        assert list(folder.rglob(".*")) == []


# --- the training process dies --------------------------------------------------------------------


@pytest.mark.parametrize("then", ["captured", "untold", "exits"])
def test_what_was_captured_is_committed_after_its_process_was_killed(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes, then: str
) -> None:
    """Also where the message that told of it was never sent: the slot says it."""
    pid = child(forks, run, notes, then=then, steps=2)
    assert forks.wait(pid) == (0 if then == "exits" else -signal.SIGKILL)
    (saver,) = notes.savers()
    await_end(saver)
    assert [ref.step for ref in candidates(run)] == [2, 1]
    for ref in candidates(run):
        check_state(run, ref, world=1)
    kinds = [type(event) for event in noted(run, entry)]
    assert kinds.count(ev.SnapshotCommitted) == 2
    check_nothing_is_left(run)


@pytest.mark.parametrize("then", ["captured", "hung up"])
def test_a_capture_that_was_only_kept_in_memory_is_committed_after_its_process_was_killed(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes, then: str
) -> None:
    """Its socket closes a moment before its end shows: that alone is not its end."""
    assert forks.wait(child(forks, run, notes, wanted=False, then=then)) == -signal.SIGKILL
    await_end(*notes.savers())
    assert [ref.step for ref in candidates(run)] == [1]


def test_a_slot_that_was_torn_by_a_death_in_mid_copy_is_never_committed(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes
) -> None:
    assert forks.wait(child(forks, run, notes, then="filling", steps=3)) == -signal.SIGKILL
    await_end(*notes.savers())
    assert [ref.step for ref in candidates(run)] == [2, 1]
    check_nothing_is_left(run)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_what_a_process_that_died_of_its_own_doing_left_undigested_is_not_used(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes, number: int
) -> None:
    """It may have scribbled on it."""
    pid = child(forks, run, notes, wanted=False, die_by=number)
    assert forks.wait(pid) == -number
    await_end(*notes.savers())
    assert candidates(run) == []
    (abandoned,) = [e for e in noted(run, entry) if isinstance(e, ev.SnapshotAbandoned)]
    assert signal.Signals(number).name in abandoned.reason


def test_what_was_digested_before_such_a_death_is_used(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes
) -> None:
    pid = child(
        forks, run, notes, then="digested", saver_failpoint="saver.digested:stop",
        die_by=signal.SIGSEGV,
    )  # fmt: skip
    assert forks.wait(pid) == -signal.SIGSEGV
    (saver,) = notes.savers()
    wake(saver)
    await_end(saver)
    assert [ref.step for ref in candidates(run)] == [1]
    check_state(run, candidates(run)[0], world=1)


def test_what_a_crashing_process_scribbled_on_behind_the_digest_is_not_committed(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes
) -> None:
    pid = child(
        forks, run, notes, then="scribbled", saver_failpoint="saver.digested:stop",
        die_by=signal.SIGSEGV,
    )  # fmt: skip
    assert forks.wait(pid) == -signal.SIGSEGV
    (saver,) = notes.savers()
    wake(saver)
    await_end(saver)
    assert candidates(run) == []
    (abandoned,) = [e for e in noted(run, entry) if isinstance(e, ev.SnapshotAbandoned)]
    assert "not those that were digested" in abandoned.reason


def test_a_capture_whose_events_were_lost_with_its_process_is_not_committed(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes
) -> None:
    """Rule 6: a commit behind which the journal lacks a step would be a hole in the history."""
    assert forks.wait(child(forks, run, notes, then="events lost")) == -signal.SIGKILL
    await_end(*notes.savers())
    assert candidates(run) == []
    (abandoned,) = [e for e in noted(run, entry) if isinstance(e, ev.SnapshotAbandoned)]
    assert abandoned.reason == "the last events of its process were lost with it"


def test_ranks_that_were_all_killed_with_the_same_step_commit_it(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes
) -> None:
    pids = [child(forks, run, notes, rank=rank, world=2) for rank in (0, 1)]
    assert [forks.wait(pid) for pid in pids] == [-signal.SIGKILL] * 2
    for saver in notes.savers():
        await_end(saver)
    (ref,) = candidates(run)
    check_state(run, ref, world=2)


@pytest.fixture
def bereft(forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes) -> Iterator[Training]:
    """Rank 0 of two. Both have captured step 1, and rank 1 was killed behind it."""
    training = Training(run, entry, rank=0, world=2)
    try:
        training.train()
        training.capture()
        training.await_report(msg.Voted)
        assert forks.wait(child(forks, run, notes, rank=1, world=2)) == -signal.SIGKILL
        yield training
    finally:
        training.close()


def test_a_training_that_says_good_bye_leaves_nothing_that_a_killed_ranks_saver_waits_for(
    bereft: Training, notes: Notes
) -> None:
    """As where one rank is killed and the others end in an exception: the next attempt would wait
    for as long as what they leave is offered."""
    bereft.dismiss()
    left = bereft.run.meeting(bereft.entry.number, bereft.entry.nonce) / "rank-00000.left"
    assert left.read_text() == "[]", "the others are not told"
    await_end(*notes.savers())
    assert [ref.step for ref in candidates(bereft.run)] == [1]


def test_a_vote_that_another_rank_will_never_cast_is_not_waited_for(
    bereft: Training, notes: Notes
) -> None:
    """Its saver still offers what it has: for a minute, if nobody comes."""
    bereft.await_report(msg.Committed, 1)
    bereft.train()
    bereft.capture()
    bereft.await_report(msg.Voted)
    (other,) = notes.savers()
    left = bereft.run.meeting(bereft.entry.number, bereft.entry.nonce) / "rank-00001.left"
    wait_until(left.exists)
    os.kill(other, signal.SIGSTOP)  # it lives, and says no more
    try:
        bereft.saver.close()
        wait_until(lambda: started_at(bereft.saver.pid or 0) is None, seconds=30.0)
        assert [ref.step for ref in candidates(bereft.run)] == [1]
    finally:
        os.kill(other, signal.SIGCONT)
        await_end(other)


def test_a_saver_whose_attempt_was_superseded_commits_nothing(
    forks: Forks, run: RunDir, entry: AttemptEntry, notes: Notes
) -> None:
    """P4: however late it wakes."""
    pid = child(forks, run, notes, then="digested", saver_failpoint="snapshot.vote.before:stop")
    assert forks.wait(pid) == -signal.SIGKILL
    later = begin_attempt(run, holder(2)).entry
    (saver,) = notes.savers()
    wake(saver)
    await_end(saver)
    assert candidates(run) == [] and later.number == 2
    assert recovery_point(run) is None


# --- the saver dies -------------------------------------------------------------------------------

FAILPOINTS = [
    "saver.digested",
    "shards.tensors.written",
    "shards.tensors.synced",
    "shards.plain.written",
    "snapshot.vote.before",
    "snapshot.vote.after",
    "snapshot.manifest.after",
    "sequence.entry.linked",
    "snapshot.committed",
    "snapshot.verified",
]
TAKEN_UP = ("snapshot.vote.after", "snapshot.manifest.after")
"""Where what a dead saver had begun is finished by the next; elsewhere the capture's name is spent,
or it is committed already."""


@pytest.mark.parametrize("where", FAILPOINTS)
def test_a_saver_that_is_killed_costs_at_most_its_capture(
    run: RunDir, entry: AttemptEntry, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit before it stands, a new saver takes what is still there, the next capture is
    committed."""
    training = Training(run, entry)
    try:
        training.train()
        training.capture()
        training.await_report(msg.Committed, 1)
        training.dismiss()
        monkeypatch.setenv(failpoints.ENVIRONMENT, f"{where}:kill")
        training.saver = training.hire()
        monkeypatch.delenv(failpoints.ENVIRONMENT)
        training.train()
        training.capture()
        wait_until(lambda: not training.saver.lives)
        assert candidates(run)[-1].step == 1
        training.dismiss()
        training.saver = training.hire()
        if where in TAKEN_UP:
            training.await_report(msg.Committed, 2)
        training.train()
        assert training.capture() is not None, "what a dead saver held is free"
        training.await_report(msg.Committed, 3)
        for ref in candidates(run):
            check_state(run, ref, world=1)
        heard = [report for report in training.reports if isinstance(report, msg.Said)]
        assert heard == [], "the streams of dead savers are in nobody's way"
        abandoned = [report for report in training.reports if isinstance(report, msg.Abandoned)]
        spent = FAILPOINTS.index(where) <= FAILPOINTS.index("snapshot.vote.before")
        assert [report.step for report in abandoned] == [2] * spent
    finally:
        training.close()


# --- both live ------------------------------------------------------------------------------------


@pytest.fixture
def training(run: RunDir, entry: AttemptEntry) -> Iterator[Training]:
    made = Training(run, entry)
    yield made
    made.close()


def test_what_did_not_change_is_referenced(run: RunDir, training: Training) -> None:
    """In two lines (specs/04-snapshots.md), by one saver and by the one after it."""
    for step in range(1, 9):
        if step == 5:
            training.dismiss()
            training.saver = training.hire()
        training.train()
        training.capture()
        training.await_report(msg.Committed, step)
    training.dismiss()  # it retires behind a commit
    training.saver = training.hire()
    live = candidates(run)
    older = [snapshot.load_manifest(run, ref).older_files() for ref in live]
    assert [ref.step for ref in live[:2]] == [8, 7]
    assert all(older[:2]) and older[0].keys().isdisjoint(older[1])
    for ref in live:
        check_state(run, ref, world=1)
    for ref in live[:2]:
        size = (run.snapshots / ref.name / "rank-00000.safetensors").stat().st_size
        assert size < FROZEN_BYTES


def test_a_capture_is_committed_while_training_goes_on(training: Training) -> None:
    for step in range(1, 5):
        training.train()
        header = training.capture()
        assert header is not None and header.step == step
        voted = training.await_report(msg.Voted, step)
        assert voted.lsn == training.journal.appended
        training.await_report(msg.Committed, step)
    training.dismiss()  # nothing is retired any more
    assert candidates(training.run)[0].step == 4
    for ref in candidates(training.run):
        check_state(training.run, ref, world=1)


def test_a_saver_that_falls_behind_holds_its_slots(training: Training) -> None:
    os.kill(training.saver.pid or 0, signal.SIGSTOP)
    training.train()
    assert training.capture() is not None
    training.train()
    assert training.capture() is not None
    training.train()
    assert training.capture() is None, "both slots are held"
    os.kill(training.saver.pid or 0, signal.SIGCONT)
    training.await_report(msg.Committed, 1)
    training.await_report(msg.Committed, 2)
    assert training.capture() is not None
    training.await_report(msg.Committed, 3)


def test_a_vote_waits_for_the_events_of_its_step(training: Training) -> None:
    """Rule 6."""
    training.train()
    training.capture(ahead=1)
    wait_until(lambda: training.arena.slots[0].let_go == 0 and _has_shard(training.run))
    training.train()
    assert training.await_report(msg.Voted, 1).lsn == training.journal.appended


def _has_shard(run: RunDir) -> bool:
    return any(run.snapshots.glob("*/rank-00000.safetensors"))


def test_a_slot_that_was_filled_again_is_not_voted_for(
    run: RunDir, entry: AttemptEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 8: a training process that took its saver for dead, and it only slept."""
    monkeypatch.setenv(failpoints.ENVIRONMENT, "shards.tensors.written:stop")
    training = Training(run, entry)
    try:
        training.train()
        training.capture()
        pid = training.saver.pid or 0
        wait_until(lambda: _has_shard(run))
        training.train()
        training.capture(into=training.arena.slots[0])
        wake(pid)
        assert "filled again" in training.await_report(msg.Abandoned, 1).reason
        training.await_report(msg.Committed, 2)
        assert [ref.step for ref in candidates(run)] == [2]
        check_state(run, candidates(run)[0], world=1)
    finally:
        training.close()


def test_the_end_is_committed_as_the_end(training: Training) -> None:
    training.train()
    training.capture()
    training.capture(end=True)
    training.await_report(msg.Committed)
    training.await_report(msg.Committed)
    assert [(ref.step, ref.end) for ref in candidates(training.run)] == [(1, True), (1, False)]


def test_a_disk_that_refuses_costs_the_capture_and_nothing_else(
    run: RunDir, entry: AttemptEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.ENVIRONMENT, "shards.tensors.written:enospc")
    training = Training(run, entry)
    try:
        training.train()
        training.capture()
        assert "cannot write" in training.await_report(msg.Abandoned, 1).reason
        training.train()
        assert training.capture() is not None
        training.await_report(msg.Committed, 2)
    finally:
        training.close()


def test_training_is_told_that_it_was_superseded(training: Training) -> None:
    begin_attempt(training.run, holder(2))
    training.train()
    training.capture()
    ended = training.await_report(msg.Ended)
    assert ended.fenced and "superseded" in ended.reason
    assert candidates(training.run) == []


def test_it_ends_when_it_is_told_to(training: Training) -> None:
    training.train()
    training.capture()
    training.saver.tell(msg.End())
    assert training.await_report(msg.Ended).reason == ""
    assert [ref.step for ref in candidates(training.run)] == [1]
    wait_until(lambda: not training.saver.lives)


def test_it_yields_to_everybody_until_somebody_waits_for_it(training: Training) -> None:
    pid = training.saver.pid or 0
    wait_until(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE)
    training.train()
    # Its stream is behind, so that it waits, and has work to hurry with.
    training.capture(ahead=1)
    wait_until(lambda: _has_shard(training.run))
    training.saver.tell(msg.Hurry())
    training.train()
    training.await_report(msg.Committed, 1)
    training.await_report(msg.Idle)
    assert wait_until(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE)


def test_who_is_waited_for_stands_among_the_others_where_that_is_allowed() -> None:
    pid = os.fork()
    if not pid:
        standing = Standing()
        standing.place(behind=True)
        behind = os.sched_getscheduler(0) == os.SCHED_IDLE
        standing.place(behind=False)
        among = os.sched_getscheduler(0) == os.SCHED_OTHER
        os._exit(0 if behind and (among or os.getuid()) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_nothing_is_left_of_many_beginnings_and_deaths(
    forks: Forks, run: RunDir, tmp_path: Path
) -> None:
    """No process, no shared memory, no descriptor in whoever started them, no temporary file."""
    ways = [
        {"then": "captured"},
        {"then": "filling", "steps": 2},
        {"then": "exits"},
        {"then": "captured", "saver_failpoint": "shards.tensors.written:kill"},
        {"then": "voted"},
    ]
    pids = []
    before = len(os.listdir("/proc/self/fd"))
    for number, how in enumerate(ways):
        begin_attempt(run, holder(number + 1))
        notes = Notes(tmp_path / f"notes-{number}")
        forks.wait(child(forks, run, notes, **how))
        pids += notes.savers()
    for pid in pids:
        await_end(pid)
    wait_until(lambda: not _holding(pids), 10.0)
    assert len(os.listdir("/proc/self/fd")) == before
    check_nothing_is_left(run)


def _holding(pids: list[int]) -> list[int]:
    """Processes of these that still map an arena."""
    found = []
    for pid in pids:
        try:
            if "walrecover-arena" in Path(f"/proc/{pid}/maps").read_text():
                found.append(pid)
        except OSError:
            continue
    return found


def test_trainings_that_end_at_any_moment_leave_what_they_must(tmp_path: Path) -> None:
    """The campaign of tests/campaigns/arena.py, in small."""
    counts = campaign(12, 3, tmp_path)
    assert counts["rounds"] == 12 and counts["commits"] >= 6
    assert any(how.startswith("offers ") for how in counts), counts
