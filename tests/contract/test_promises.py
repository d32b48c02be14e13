"""The ten promises, each exercised at the seams of journal, snapshots, sequence and recovery.

The crash tests beside this take every failpoint, the crash states every legal loss of a power cut,
the end-to-end tests a real training; these say in a few lines what each promise means.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.protocol import (
    FROZEN_BYTES,
    Launch,
    candidates,
    check_state,
    completed,
    entries_of,
    files_below,
    holder,
    recovery_point,
)
from walrecover import failpoints, recovery, resumes, snapshot
from walrecover.entries import SnapshotRef
from walrecover.errors import Corrupt, Fenced, StorageFailed, UnsupportedVersion
from walrecover.events import ResumeDiverged, ResumeVerified, StepCompleted
from walrecover.failpoints import FailpointReached
from walrecover.journal import Reader, find_streams
from walrecover.rundir import RunDir

JOURNAL_BYTES_A_STEP = 1024


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
    with Launch.begin(run) as launch:
        refs = []
        for step in steps:
            launch.train(step - launch.step)
            refs.append(launch.save().snapshot)
        return refs


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def history(run: RunDir) -> dict[int, list[StepCompleted]]:
    """Every execution of every step, as the journal holds it, by step and in order of attempts."""
    found: dict[int, list[StepCompleted]] = {}
    for _, path in find_streams(run.journal):
        with Reader(path) as reader:
            for _, event in reader.read():
                if isinstance(event, StepCompleted):
                    found.setdefault(event.step, []).append(event)
    return found


# --- P1 -----------------------------------------------------------------------------------------


def test_p1_what_was_acknowledged_survives_kill_9(run: RunDir, tmp_path: Path) -> None:
    acknowledged = tmp_path / "acknowledged"
    pid = os.fork()
    if pid == 0:
        try:
            launch = Launch.begin(run)
            launch.train(3)
            launch.save()
            launch.train(2)
            lsn = launch.journals[1].sync().lsn
            acknowledged.write_text(f"{lsn}")
            launch.train(50)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    point = recovery_point(run)
    assert point is not None and point.step == 3
    folded = recovery.fold_run(run)
    rank_1 = next(record for key, record in folded.records.items() if key.writer == "rank-1")
    assert rank_1.lsn >= int(acknowledged.read_text()) and rank_1.last_step >= 5


def test_p1_all_of_a_snapshot_is_synced_before_it_is_acknowledged(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Launch.begin(run) as launch:
        launch.train(1)
        synced: set[str] = set()
        real = os.fsync

        def fsync(fd: int) -> None:
            synced.add(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        folder = run.snapshots / launch.save().snapshot.name
    assert {str(path) for path in (folder, run.snapshots, run.sequence)} <= synced
    for name in ("rank-00000", "rank-00001"):
        assert {str(folder / f"{name}.{kind}") for kind in ("safetensors", "msgpack")} <= synced
    for name in ("manifest.json", f"{len(entries_of(run)):08d}.json"):
        assert any(Path(path).name.startswith(f".{name}.") for path in synced)


# --- P2 -----------------------------------------------------------------------------------------

BEFORE = (
    "shards.tensors.written",
    "shards.tensors.synced",
    "shards.plain.written",
    "snapshot.vote.before",
    "snapshot.vote.after",
    "snapshot.manifest.before",
    "snapshot.manifest.after",
    "sequence.entry.written",
)
BEHIND = ("sequence.entry.linked", "sequence.entry.synced", "snapshot.committed")


@pytest.mark.parametrize("name", [*BEFORE, *BEHIND])
def test_p2_a_snapshot_exists_when_the_sequence_says_so_and_not_before(
    run: RunDir, name: str
) -> None:
    (old,) = saved(run, 2)
    with Launch.begin(run) as launch:
        launch.train(2)
        failpoints.arm(f"{name}:raise")
        with pytest.raises(FailpointReached):
            launch.save()
        failpoints.arm("")
    point = recovery_point(run)
    assert point is not None
    assert point.step == (4 if name in BEHIND else 2)
    check_state(run, old)


# --- P3 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damaged", [c for n in range(4) for c in itertools.combinations(range(3), n)]
)
def test_p3_recovery_returns_what_verifies_or_refuses(
    run: RunDir, damaged: tuple[int, ...]
) -> None:
    refs = saved(run, 2, 4, 6)
    for place in damaged:
        shard = run.snapshots / refs[place].name / "rank-00000.safetensors"
        flip(shard, 8 * shard.stat().st_size - 1)  # the last bit of the last tensor
    good = [ref for place, ref in enumerate(refs) if place not in damaged]
    if not good:
        with pytest.raises(Corrupt, match=r"step 6: .*step 4: .*step 2: "):
            recovery.begin_attempt(run, holder())
        return
    plan = recovery.begin_attempt(run, holder()).entry.plan
    assert plan.base == good[-1]
    check_state(run, good[-1])
    newer = [refs[place].step for place in reversed(damaged) if refs[place].step > good[-1].step]
    assert [rejected.step for rejected in plan.rejected] == newer


# --- P4 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["shard", "one vote", "all votes", "manifest"])
def test_p4_a_late_worker_adds_bytes_and_never_a_commit(run: RunDir, stage: str) -> None:
    with Launch.begin(run) as late:
        late.train(4)
        if stage != "shard":
            late.vote(0)
        if stage not in ("shard", "one vote"):
            late.vote(1)
        if stage == "manifest":
            failpoints.arm("snapshot.manifest.after:raise")
            with pytest.raises(FailpointReached):
                late.commit()
            failpoints.arm("")
        with Launch.begin(run) as newer:
            newer.train(2)
            kept = newer.save().snapshot
            # It wakes and does everything that it was about to do.
            if stage == "shard":
                late.vote(0)
            if stage in ("shard", "one vote"):
                late.vote(1)
            with pytest.raises(Fenced):
                late.commit()
            late.train(2)
            assert candidates(run) == [kept]
            assert recovery_point(run) == kept
        folded = recovery.fold_run(run)
        assert [(link.attempt, last) for link, last in folded.surviving()] == [(2, 2)]


# --- P5 and P6 ----------------------------------------------------------------------------------


def crash_and_resume(run: RunDir, seed: int, last: int = 40) -> None:
    """A run that dies at drawn steps, sometimes with its newest snapshot damaged."""
    draw = random.Random(seed)
    while True:
        with Launch.begin(run) as launch:
            until = min(last, launch.step + draw.randrange(1, 12))
            while launch.step < until:
                launch.train(1)
                if draw.random() < 0.3:
                    launch.save()
            if launch.step == last:
                return
        found = candidates(run)
        if len(found) > 1 and draw.random() < 0.3:
            flip(run.snapshots / found[0].name / "rank-00001.msgpack", 100)


@pytest.mark.parametrize("seed", range(5))
def test_p5_every_sample_of_the_surviving_history_is_consumed_once(run: RunDir, seed: int) -> None:
    crash_and_resume(run, seed)
    folded = recovery.fold_run(run)
    consumed: dict[str, list[int]] = {"rank-0": [], "rank-1": []}
    links = {(link.attempt, link.nonce): link for link in folded.chain}
    for stream, path in find_streams(run.journal):
        link = links.get((stream.attempt, stream.nonce))
        with Reader(path) as reader:
            for _, event in reader.read():
                if isinstance(event, StepCompleted) and link and link.holds(event.step):
                    for share in event.consumed:
                        for first, end in share.ranges:
                            consumed[stream.writer] += range(first, end)
    assert {writer: sorted(samples) for writer, samples in consumed.items()} == {
        "rank-0": list(range(40)),
        "rank-1": list(range(40)),
    }


@pytest.mark.parametrize("seed", range(5))
def test_p6_steps_done_again_agree_with_the_journal(run: RunDir, seed: int) -> None:
    crash_and_resume(run, seed)
    executed = history(run)
    assert sorted(executed) == list(range(1, 41))
    assert any(len(found) > 2 for found in executed.values())  # beyond one for each of two ranks
    for step, found in executed.items():
        assert all(event == completed(step) for event in found)
    compared = [one.verdict for one in resumes.verdicts(run)]
    assert not any(isinstance(verdict, ResumeDiverged) for verdict in compared)
    assert any(isinstance(v, ResumeVerified) and v.to_step for v in compared)
    for ref in candidates(run):
        if ref == recovery_point(run):
            check_state(run, ref)


def test_p6_a_step_that_was_not_the_same_is_seen(run: RunDir) -> None:
    """Another learning rate in one rank's second execution of a step."""
    saved(run, 2)
    with Launch.begin(run) as launch:
        launch.train(2)
    with Launch.begin(run) as launch:
        launch.journals[0].append(msgspec.structs.replace(completed(3), lr=(0.5000001,)))
        launch.journals[1].append(completed(3))
    assert len({event.lr for event in history(run)[3]}) == 2
    found = {(one.attempt, one.rank): one.verdict for one in resumes.verdicts(run)}
    diverged, verified = found[3, 0], found[3, 1]
    assert isinstance(diverged, ResumeDiverged) and isinstance(verified, ResumeVerified)
    assert (diverged.step, diverged.what) == (3, "the learning rate")
    assert (verified.from_step, verified.to_step) == (3, 3)


# --- P7 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_p7_crashing_in_recovery_any_number_of_times_ends_in_the_same_state(
    run: RunDir, seed: int
) -> None:
    refs = saved(run, 2, 4, 6)
    flip(run.snapshots / refs[2].name / "rank-00000.msgpack", 5)
    draw = random.Random(seed)
    inside = [name for name in failpoints.NAMES if name.startswith(("recovery.", "sequence."))]
    for _ in range(draw.randrange(1, 9)):
        failpoints.arm(f"{draw.choice(inside)}:raise")
        with pytest.raises(FailpointReached):
            recovery.begin_attempt(run, holder())
    failpoints.arm("")
    assert recovery.begin_attempt(run, holder()).entry.plan.base == refs[1]
    assert recovery_point(run) == refs[1]


# --- P8 -----------------------------------------------------------------------------------------


def test_p8_a_flipped_bit_is_the_same_result_a_named_loss_or_a_refusal(run: RunDir) -> None:
    """Some bits of every kind of file; `property/test_bit_flips.py` takes thousands of them."""
    refs = saved(run, 2, 4)
    draw = random.Random(8)
    for path in files_below(run.path):
        if path.name == "lock.mdb":
            continue
        good = path.read_bytes()
        newest_shard = path.suffix == ".safetensors" and path.parent.name == refs[1].name
        for bit in [*draw.sample(range(8 * len(good)), 3), 8 * len(good) - 1]:
            flip(path, bit)
            try:
                verdict = recovery.choose(run, entries_of(run))
            except (Corrupt, UnsupportedVersion):
                continue
            finally:
                damaged, _ = path.read_bytes(), path.write_bytes(good)
                assert damaged != good
            if newest_shard:  # every bit of a shard counts
                assert verdict.base != refs[1]
            assert verdict.base == refs[1] or [r.step for r in verdict.rejected] == [4]


# --- P9 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "link", "mkdir", "write"])
def test_p9_a_failing_disk_loses_nothing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    """The n-th call fails, for every n: the old state loads, and the next snapshot commits."""
    (old,) = saved(run, 2)
    real = getattr(os, call)
    for failing in itertools.count(1):
        count = 0

        def fail(*arguments: object, failing: int = failing, **options: object) -> object:
            nonlocal count
            count += 1
            if count == failing:
                raise OSError(error, os.strerror(error))
            return real(*arguments, **options)

        with Launch.begin(run) as launch:
            launch.train(1)
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                try:
                    launch.save()
                except StorageFailed:
                    assert count == failing  # it is not tried again as if it had worked
            point = recovery_point(run)
            assert point is not None and point.step >= old.step
            launch.train(1)
            old = launch.save().snapshot
            assert recovery_point(run) == old
        if count < failing:
            assert failing > 1
            return


# --- P10 ----------------------------------------------------------------------------------------


def test_p10_snapshots_stay_within_their_number(run: RunDir) -> None:
    """And what they list within twice their state; what no snapshot lists is gone."""
    for _ in range(3):
        with Launch.begin(run) as launch:
            for _ in range(5):
                launch.train(1)
                launch.keep(launch.save(), retention=2)
                kept = [snapshot.load_manifest(run, ref) for ref in candidates(run)]
                assert len(kept) <= 3
                listed = {path for manifest in kept for path in manifest.files()}
                folders = {path.split("/")[0] for path in listed}
                assert {path.name for path in run.snapshots.iterdir()} == folders
                for manifest in kept:
                    shards = [f.bytes for p, f in manifest.files().items() if "safetensors" in p]
                    assert sum(shards) <= 2 * 2 * (2 * FROZEN_BYTES + 1000)
                assert recovery_point(run) == candidates(run)[0]
            launch.train(1)
            launch.vote(0)  # never commits
    assert len(candidates(run)) == 2
    # An attempt takes one entry, a snapshot one for its commit and one for the retirement.
    assert len(entries_of(run)) <= 3 + 2 * 15


def test_p10_nothing_is_deleted_before_something_newer_is_verified(run: RunDir) -> None:
    with Launch.begin(run) as launch:
        refs = []
        for _ in range(4):
            launch.train(1)
            refs.append(launch.save())
        flip(run.snapshots / refs[3].snapshot.name / "rank-00000.safetensors", 900)
        with pytest.raises(Corrupt):
            launch.keep(refs[3], retention=1)
        assert launch.keep(refs[2], retention=1) == ()
        assert launch.keep(refs[1], retention=1) == (refs[0].snapshot,)
    assert recovery_point(run) == refs[2].snapshot


def test_p10_the_journal_grows_by_a_bounded_number_of_bytes_a_step(run: RunDir) -> None:
    with Launch.begin(run) as launch:
        paths = [journal.path / "data.mdb" for journal in launch.journals]
        before = [path.stat().st_size for path in paths]
        launch.train(2000)
        for journal in launch.journals:
            journal.sync()
        grown = [path.stat().st_size - at for path, at in zip(paths, before, strict=True)]
    assert all(0 < size / 2000 <= JOURNAL_BYTES_A_STEP for size in grown)
