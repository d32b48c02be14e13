"""Late actors: stopped anywhere, overtaken, woken. No commit of theirs counts; nothing is lost.

A rank 0 (with its keeper), a saver and a starter of an old attempt are stopped at every failpoint.
A new attempt begins, commits, and retires. Then the old one goes on with what it was about to do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forks import Forks
from tests.support.protocol import (
    NAMES,
    Launch,
    candidates,
    check_state,
    entries_of,
    holder,
    open_stream,
    recovery_point,
)
from tests.support.worker import BUSY, FENCED, REFUSED, said
from walrecover import entries as model
from walrecover import recovery
from walrecover.entries import AttemptEntry, Entry, SnapshotRef
from walrecover.errors import Fenced, RunBusy
from walrecover.processes import identity
from walrecover.rundir import RunDir

VOTING = [name for name in NAMES if name.startswith(("journal.", "shards.", "snapshot.vote."))]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with Forks() as server:
        code = server.call(
            "tests.support.worker:train", root=str(folder / ".walrecover"),
            notes=str(folder / "notes"), attempts=1,
        )  # fmt: skip
    assert code == 0
    return folder


@contextlib.contextmanager
def overtaking(run: RunDir) -> Iterator[Launch]:
    """A new attempt, which this process holds: it commits, reads back and retires."""
    with Launch.begin(run, identity()) as newer:
        for _ in range(3):
            newer.train(2)
            newer.keep(newer.save())
        yield newer


def entered_by_others(before: list[Entry], after: list[Entry]) -> list[Entry]:
    assert after[: len(before)] == before
    return after[len(before) :]


def check_what_is_left(run: RunDir, notes: Path, newest: list[SnapshotRef]) -> None:
    """The new attempt's snapshots are all that can be chosen, and they are whole; every event
    that anybody acknowledged is in the journal."""
    assert candidates(run) == newest
    for ref in newest:
        check_state(run, ref)
    assert recovery_point(run) == newest[0]
    folded = recovery.fold_run(run)
    lsns = {(f"a{k.attempt}-{k.nonce}", k.writer): r.lsn for k, r in folded.records.items()}
    for stream, lsn in said(notes).synced.items():
        assert lsns[stream] >= lsn
    chain = {(link.attempt, link.nonce) for link in folded.chain}
    assert (newest[0].attempt, newest[0].nonce) in chain


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_late_rank_0(forks: Forks, trained: Path, tmp_path: Path, name: str, count: int) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run, notes = RunDir(tmp_path / ".walrecover", "a-run"), tmp_path / "notes"
    late = forks.start(
        "tests.support.worker:train", root=str(run.root), notes=str(notes),
        armed=f"{name}:stop:{count}", attempts=2 if name.startswith("recovery.") else 1,
    )  # fmt: skip
    assert forks.wait(late) is None, f"{name} is not passed {count} times"
    acknowledged = said(notes).committed
    with overtaking(run) as newer:
        newest, before = candidates(run), entries_of(run)
        assert (newest[0].attempt, newest[0].nonce) == (newer.entry.number, newer.entry.nonce)
        plan = newer.entry.plan
        assert plan.base is not None and plan.base.step >= acknowledged[-1][0]
        code = forks.wake(late)
        assert code in (FENCED, BUSY, REFUSED)
        assert entered_by_others(before, entries_of(run)) == []
        check_what_is_left(run, notes, newest)
        # What this attempt does next does not meet anything of the late one's.
        newer.train(1)
        last = newer.save()
        newer.keep(last)
        assert recovery_point(run) == last.snapshot


@pytest.mark.parametrize("name", VOTING)
def test_a_late_saver(forks: Forks, trained: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run, notes = RunDir(tmp_path / ".walrecover", "a-run"), tmp_path / "notes"
    entry = recovery.begin_attempt(run, holder()).entry
    old = Launch(run, entry, 2, [open_stream(run, entry, 0, 2)])
    old.train(2)
    old.vote(0)
    late = forks.start(
        "tests.support.worker:vote", root=str(run.root), notes=str(notes), armed=f"{name}:stop",
        number=old.entry.number, rank=1, steps=2,
    )  # fmt: skip
    assert forks.wait(late) is None, f"{name} is not passed"
    with overtaking(run):
        newest, before = candidates(run), entries_of(run)
        assert forks.wake(late) in (0, REFUSED)
        with contextlib.suppress(Fenced):
            assert old.commit() is None  # its folder was swept
        old.close()
        assert entered_by_others(before, entries_of(run)) == []
        check_what_is_left(run, notes, newest)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith(("recovery.", "sequence."))]
)
def test_a_late_starter(forks: Forks, trained: Path, tmp_path: Path, name: str) -> None:
    """It planned from what it had read; its entry finds its number taken, or is superseded."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run, notes = RunDir(tmp_path / ".walrecover", "a-run"), tmp_path / "notes"
    late = forks.start(
        "tests.support.worker:train", root=str(run.root), notes=str(notes),
        armed=f"{name}:stop", attempts=1, snapshots=1,
    )  # fmt: skip
    assert forks.wait(late) is None
    entered = isinstance(entries_of(run)[-1], AttemptEntry)
    assert entered == (
        name in ("recovery.planned", "sequence.entry.linked", "sequence.entry.synced")
    )
    with overtaking(run):
        newest, before = candidates(run), entries_of(run)
        # Its plan's base was retired meanwhile: it may find that before it finds itself fenced.
        assert forks.wake(late) in ((FENCED, REFUSED) if entered else (BUSY,))
        assert entered_by_others(before, entries_of(run)) == []
        check_what_is_left(run, notes, newest)


# --- two at once --------------------------------------------------------------------------------


def begin_at_once(forks: Forks, folder: Path, many: int) -> list[int | None]:
    """How each of many starters ended: None for one that holds the run, and stopped."""
    gate = folder / "gate"
    gate.unlink(missing_ok=True)
    os.mkfifo(gate)
    pids = [
        forks.start("tests.support.worker:hold", root=str(folder / ".walrecover"), gate=str(gate))
        for _ in range(many)
    ]
    with gate.open("w"):
        statuses = [forks.wait(pid) for pid in pids]
    for pid, status in zip(pids, statuses, strict=True):
        if status is None:
            forks.kill(pid)
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("many", [2, 4])
def test_of_starters_at_once_exactly_one_holds_the_run(
    forks: Forks, tmp_path: Path, many: int
) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    rounds = 100 if many == 2 else 10
    for number in range(1, rounds + 1):
        statuses = begin_at_once(forks, tmp_path, many)
        assert sorted(statuses, key=str) == [BUSY] * (many - 1) + [None]
        assert [entry.number for entry in model.attempts(entries_of(run))][-1] == number
    assert len(entries_of(run)) == rounds


def test_a_stopped_holder_is_alive(forks: Forks, tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    pid = forks.start("tests.support.worker:hold", root=str(run.root), gate=str(gate))
    with gate.open("w"):
        assert forks.wait(pid) is None
    with pytest.raises(RunBusy, match=f"held by pid {pid}"):
        recovery.begin_attempt(run, identity())
    forks.kill(pid)
    assert recovery.begin_attempt(run, identity()).entry.number == 2
