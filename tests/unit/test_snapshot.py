"""Votes, commits, retention: when a snapshot exists, and when its files may go."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.protocol import (
    FakeStream,
    Launch,
    candidates,
    capture,
    check_state,
    entries_of,
    files_below,
    load,
    recovery_point,
    state_after,
    tensor,
)
from walrecover import entries as model
from walrecover import failpoints, plain, shards, snapshot
from walrecover import manifest as votes
from walrecover.entries import SnapshotRef
from walrecover.errors import Corrupt, Fenced, StorageFailed
from walrecover.failpoints import FailpointReached
from walrecover.rundir import RunDir
from walrecover.snapshot import Disagreed


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / ".walrecover", "a-run")


@pytest.fixture
def launch(run: RunDir) -> Iterator[Launch]:
    with Launch.begin(run) as begun:
        begun.train(3)
        yield begun


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def folder_of(launch: Launch) -> Path:
    name = model.snapshot_name(launch.step, launch.entry.number, launch.entry.nonce)
    return launch.run.snapshots / name


# --- votes --------------------------------------------------------------------------------------


def test_a_vote_names_what_was_written(launch: Launch) -> None:
    for rank in (0, 1):
        part = launch.vote(rank)
        folder = folder_of(launch)
        assert votes.decode_part((folder / f"rank-{rank:05d}.part").read_bytes()) == part
        assert set(part.files) == {
            f"{folder.name}/rank-{rank:05d}.{kind}" for kind in ("safetensors", "msgpack")
        }
        for path, at in part.files.items():
            assert (launch.run.snapshots / path).stat().st_size == at.bytes
        assert part.lsn == launch.journals[rank].durable


def test_replicated_tensors_are_written_by_rank_0_only(launch: Launch) -> None:
    zero, one = launch.vote(0), launch.vote(1)
    assert zero.replicated == one.replicated
    assert one.tensors["weights"].file == f"{folder_of(launch).name}/rank-00000.safetensors"
    assert one.tensors["own"].file == f"{folder_of(launch).name}/rank-00001.safetensors"
    data = (folder_of(launch) / "rank-00001.safetensors").read_bytes()
    assert state_after(3) not in data and state_after(3, 1) in data


def test_the_events_since_the_last_commit_lie_beside_the_shard(launch: Launch) -> None:
    """Rule 6: a lost host loses no history behind a commit."""
    launch.save()
    launch.train(2)
    behind, last = launch.committed_lsn[1], launch.journals[1].appended
    part = launch.vote(1)
    assert part.lsn == last
    path = f"{folder_of(launch).name}/rank-00001.msgpack"
    rest = plain.decode(shards.read_plain(launch.run.snapshots, path, part.files[path]))
    assert rest["writer"] == "rank-1"
    assert rest["events"] == launch.journals[1].envelopes(behind, last)
    assert len(rest["events"]) == 2


def test_the_journal_is_durable_before_the_vote(launch: Launch) -> None:
    class Refusing(FakeStream):
        def sync(self) -> tuple[int, bytes]:
            raise StorageFailed("the disk is full")

    with pytest.raises(StorageFailed):
        launch.vote(0, stream=Refusing())
    assert not list(folder_of(launch).glob("*.part"))


def test_a_step_is_captured_at_most_once(launch: Launch) -> None:
    launch.vote(0)
    before = {path: path.read_bytes() for path in files_below(folder_of(launch))}
    with pytest.raises(StorageFailed, match="exists already"):
        launch.vote(0)
    assert {path: path.read_bytes() for path in files_below(folder_of(launch))} == before


def test_a_vote_is_cast_once(launch: Launch) -> None:
    folder_of(launch).mkdir()
    (folder_of(launch) / "rank-00000.part").write_bytes(b"an earlier one")
    with pytest.raises(StorageFailed, match="holds a vote of rank 0 already"):
        launch.vote(0)


@pytest.mark.parametrize(
    "failing", ["write_durably", "sync_directory", "sync_file", "make_directory"]
)
def test_a_disk_that_refuses_is_a_vote_not_cast(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (snapshot, shards):
        if hasattr(module, failing):
            monkeypatch.setattr(module, failing, fail)
    with pytest.raises(StorageFailed):
        launch.vote(0)
    assert launch.commit() is None
    assert candidates(launch.run) == []


def test_a_folder_swept_away_under_a_vote_is_a_vote_not_cast(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer capture was committed meanwhile, and this one's files went."""
    real = shards.write_plain

    def write(*arguments: object) -> object:
        shutil.rmtree(folder_of(launch))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write_plain", write)
    with pytest.raises(StorageFailed):
        launch.vote(0)


# --- commits ------------------------------------------------------------------------------------


def test_a_snapshot_exists_once_the_sequence_says_so(launch: Launch) -> None:
    launch.vote(0)
    assert launch.commit() is None
    launch.vote(1)
    assert candidates(launch.run) == []
    entry = launch.commit()
    assert entry is not None
    assert candidates(launch.run) == [entry.snapshot]
    assert recovery_point(launch.run) == entry.snapshot


def test_nothing_is_entered_while_votes_are_missing(launch: Launch) -> None:
    launch.vote(1)
    before = entries_of(launch.run)
    assert launch.commit() is None
    assert entries_of(launch.run) == before
    assert not (folder_of(launch) / "manifest.json").exists()


def test_the_manifest_is_durable_before_the_entry(launch: Launch) -> None:
    launch.vote(0), launch.vote(1)
    failpoints.arm("snapshot.manifest.after:raise")
    with pytest.raises(FailpointReached):
        launch.commit()
    assert (folder_of(launch) / "manifest.json").exists()
    assert candidates(launch.run) == []


def test_what_all_ranks_hold_alike_comes_back_to_each(launch: Launch) -> None:
    """Tied tensors: rank 0 writes one of the two, and only rank 0 knows which."""
    check_state(launch.run, launch.save().snapshot)
    assert load(launch.run, candidates(launch.run)[0])[1, "tied"] == state_after(3)


def test_ranks_at_different_positions_do_not_commit(launch: Launch) -> None:
    launch.vote(0), launch.vote(1, position="elsewhere")
    with pytest.raises(Disagreed, match="another data position"):
        launch.commit()
    assert candidates(launch.run) == []


def test_ranks_whose_replicated_tensors_differ_do_not_commit(launch: Launch) -> None:
    launch.vote(0)
    taken = capture(launch.run.name, launch.entry, 1, 2, launch.step)
    other = tensor(b"x" * 48)
    moved = taken._replace(tensors={**taken.tensors, "weights": other, "tied": other})
    snapshot.vote(launch.run, moved, launch.journals[1])
    with pytest.raises(Disagreed, match="replicated state of rank 1 differs"):
        launch.commit()
    assert candidates(launch.run) == []


def test_votes_for_something_else_do_not_commit(run: RunDir) -> None:
    with Launch.begin(run, world=1) as launch:
        launch.train(3)
        launch.vote(0)
        right = folder_of(launch)
        launch.train(1)
        shutil.copytree(right, folder_of(launch))
        with pytest.raises(Disagreed, match="are for step 3 of attempt 1"):
            launch.commit()
        assert candidates(run) == []


def test_a_rank_that_leaves_to_rank_0_what_it_has_not_written(launch: Launch) -> None:
    launch.vote(0)
    one = launch.vote(1)
    path = folder_of(launch) / "rank-00001.part"
    for change in ({"dtype": "float32"}, {"shape": (3, 16)}, {"digest": "blake3:other"}):
        moved = msgspec.structs.replace(one.tensors["weights"], **change)
        false = msgspec.structs.replace(one, tensors=one.tensors | {"weights": moved})
        path.write_bytes(votes.encode_part(false))
        with pytest.raises(Disagreed, match="rank 0 did not write weights"):
            launch.commit()


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_vote_does_not_commit(launch: Launch, damage: bytes | None) -> None:
    launch.vote(0), launch.vote(1)
    path = folder_of(launch) / "rank-00001.part"
    path.write_bytes(
        path.read_bytes().replace(b"weights", b"weighus") if damage is None else damage
    )
    with pytest.raises(Corrupt):
        launch.commit()
    assert candidates(launch.run) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(b"another")])
def test_another_manifest_that_is_there_already_does_not_commit(
    launch: Launch, make: Callable[[Path], object]
) -> None:
    launch.vote(0), launch.vote(1)
    make(folder_of(launch) / "manifest.json")
    with pytest.raises((StorageFailed, Corrupt)):
        launch.commit()
    assert candidates(launch.run) == []


def test_a_manifest_left_by_an_error_is_used(launch: Launch) -> None:
    """NFS: the link happened and its answer was lost, or the entry could not be written."""
    launch.vote(0), launch.vote(1)
    failpoints.arm("sequence.entry.written:enospc")
    with pytest.raises(StorageFailed):
        launch.commit()
    failpoints.arm("")
    launch.commit()
    assert recovery_point(launch.run) is not None


def test_captures_commit_in_ascending_order(launch: Launch) -> None:
    launch.vote(0), launch.vote(1)
    older = launch.step
    launch.train(2)
    newer = launch.save()
    launch.step = older
    with pytest.raises(Disagreed, match="this attempt has committed step 5"):
        launch.commit()
    assert candidates(launch.run) == [newer.snapshot]


def test_a_capture_is_committed_once(launch: Launch) -> None:
    launch.save()
    with pytest.raises(Disagreed):
        launch.commit()
    assert len(candidates(launch.run)) == 1


def test_the_end_is_another_capture_than_its_step(launch: Launch) -> None:
    first = launch.save().snapshot
    second = launch.save(end=True, finished=True).snapshot
    assert first.step == second.step and first.name != second.name
    assert candidates(launch.run) == [second, first]
    assert model.finished(entries_of(launch.run))


def test_a_superseded_attempt_commits_nothing(run: RunDir, launch: Launch) -> None:
    launch.vote(0), launch.vote(1)
    with Launch.begin(run):
        before = entries_of(run)
        with pytest.raises(Fenced, match="attempt 1 was superseded: the run belongs to attempt 2"):
            launch.commit()
        assert entries_of(run) == before


def test_an_attempt_superseded_between_decision_and_entry_commits_nothing(
    run: RunDir, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create-if-absent is the fence: what was decided on older entries finds its number taken."""
    launch.vote(0), launch.vote(1)
    begun: list[Launch] = []
    real = snapshot.Sequence.create_next

    def create_next(self: snapshot.Sequence, seen: int, entry: model.Entry) -> bool:
        if not begun and isinstance(entry, model.CommitEntry):
            begun.append(Launch.begin(run))
        return real(self, seen, entry)

    monkeypatch.setattr(snapshot.Sequence, "create_next", create_next)
    with pytest.raises(Fenced):
        launch.commit()
    assert candidates(run) == []
    begun[0].close()


# --- reading back -------------------------------------------------------------------------------


def committed(launch: Launch) -> SnapshotRef:
    return launch.save().snapshot


def test_a_snapshot_reads_back(launch: Launch) -> None:
    manifest = snapshot.verify(launch.run, committed(launch))
    assert (manifest.step, manifest.world) == (3, 2)
    assert len(manifest.files()) == 4


@pytest.mark.parametrize(
    "name",
    ["manifest.json"] + [f"rank-0000{rank}.{kind}" for rank in (0, 1)
                         for kind in ("safetensors", "msgpack")],
)  # fmt: skip
def test_every_file_of_a_snapshot_is_needed(launch: Launch, name: str) -> None:
    ref = committed(launch)
    (folder_of(launch) / name).unlink()
    with pytest.raises(Corrupt, match=f"{name} is missing"):
        snapshot.verify(launch.run, ref)


def test_votes_are_not_needed_once_committed(launch: Launch) -> None:
    ref = committed(launch)
    for path in folder_of(launch).glob("*.part"):
        path.unlink()
    snapshot.verify(launch.run, ref)


def test_a_manifest_that_is_not_the_committed_one_is_corrupt(launch: Launch) -> None:
    ref = committed(launch)
    path = folder_of(launch) / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Corrupt, match="not the one that was committed"):
        snapshot.verify(launch.run, ref)


def test_a_manifest_of_another_snapshot_is_corrupt(launch: Launch) -> None:
    ref = committed(launch)
    moved = msgspec.structs.replace(ref, step=4)
    folder_of(launch).rename(launch.run.snapshots / moved.name)
    with pytest.raises(Corrupt, match="describes step-00000003"):
        snapshot.verify(launch.run, moved)


def test_an_oversized_manifest_is_corrupt(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = committed(launch)
    monkeypatch.setattr(votes, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(Corrupt, match="larger than"):
        snapshot.verify(launch.run, ref)


# --- retention ----------------------------------------------------------------------------------


def names(run: RunDir) -> list[str]:
    return sorted(os.listdir(run.snapshots))


def save_and_keep(launch: Launch, retention: int = 2) -> SnapshotRef:
    launch.train(1)
    commit = launch.save()
    launch.keep(commit, retention)
    return commit.snapshot


def test_the_last_ones_stay(launch: Launch) -> None:
    refs = [save_and_keep(launch) for _ in range(5)]
    assert candidates(launch.run) == [refs[4], refs[3]]
    left = {path.parent.name for path in files_below(launch.run.snapshots)}
    assert left == {ref.name for ref in refs} - {refs[2].name}
    for ref in refs[:2]:  # void, but for what the two that stay reference
        assert sorted(os.listdir(launch.run.snapshots / ref.name)) == [
            "rank-00000.safetensors",
            "rank-00001.safetensors",
        ]


def test_the_retirement_is_entered_before_anything_goes(launch: Launch) -> None:
    refs = [save_and_keep(launch) for _ in range(2)]
    launch.train(1)
    commit = launch.save()
    failpoints.arm("snapshot.retired:raise")
    with pytest.raises(FailpointReached):
        launch.keep(commit)
    assert candidates(launch.run) == [commit.snapshot, refs[1]]
    assert refs[0].name in names(launch.run)
    for ref in refs:
        snapshot.verify(launch.run, ref)


def test_files_that_a_crash_left_go_the_next_time(launch: Launch) -> None:
    refs = [save_and_keep(launch) for _ in range(2)]
    launch.train(1)
    commit = launch.save()
    failpoints.arm("snapshot.deleting:raise")
    with pytest.raises(FailpointReached):
        launch.keep(commit)
    failpoints.arm("")
    assert (launch.run.snapshots / refs[0].name / "manifest.json").exists()
    assert launch.keep(commit) == ()
    assert {path.suffix for path in files_below(launch.run.snapshots / refs[0].name)} == {
        ".safetensors"
    }


def test_what_can_never_commit_goes(run: RunDir, launch: Launch) -> None:
    """Captures of older attempts and those below the last commit, without any retirement."""
    launch.vote(0)
    abandoned = folder_of(launch).name
    with Launch.begin(run) as second:
        second.train(1)
        second.vote(0)
        overtaken = folder_of(second).name
        second.train(1)
        commit = second.save()
        second.train(1)
        second.vote(1)
        pending = folder_of(second).name
        second.keep(commit)
        assert names(run) == sorted([commit.snapshot.name, pending])
        assert abandoned != overtaken


def test_what_is_not_ours_is_left_alone(launch: Launch) -> None:
    foreign = launch.run.snapshots / "notes"
    foreign.mkdir()
    (launch.run.snapshots / "a-file").write_bytes(b"")
    (launch.run.snapshots / "step-00000001.a1-abc").symlink_to(foreign)
    for _ in range(3):
        save_and_keep(launch)
    assert {"notes", "a-file", "step-00000001.a1-abc"} <= set(names(launch.run))


def test_a_superseded_attempt_retires_and_deletes_nothing(run: RunDir, launch: Launch) -> None:
    commits = []
    for _ in range(4):
        launch.train(1)
        commits.append(launch.save())
    with Launch.begin(run):
        before = names(run)
        with pytest.raises(Fenced):
            launch.keep(commits[-1])
        assert names(run) == before


def test_who_slept_before_deleting_deletes_nothing_newer(run: RunDir, launch: Launch) -> None:
    """P4: attempt 1 decided what to delete, slept, and wakes when attempt 2 has committed."""
    for _ in range(3):
        save_and_keep(launch)
    seen = entries_of(run)
    with Launch.begin(run) as second:
        refs = [save_and_keep(second, retention=9) for _ in range(2)]
        meeting = run.meeting(second.entry.number, second.entry.nonce)
        meeting.mkdir()
        snapshot.delete_void(run, seen)
        assert meeting.is_dir()
        for ref in refs:
            check_state(run, ref)
        assert recovery_point(run) == refs[-1]


def test_the_meeting_places_of_older_attempts_go(run: RunDir, launch: Launch) -> None:
    places = [run.meeting(launch.entry.number, launch.entry.nonce)]
    with Launch.begin(run) as second:
        places.append(run.meeting(second.entry.number, second.entry.nonce))
        for place in [*places, run.attempts / "a9-unknown"]:
            place.mkdir()
        save_and_keep(second)
    assert sorted(os.listdir(run.attempts)) == sorted([places[1].name, "a9-unknown"])


def test_a_manifest_that_references_a_retired_shard_is_refused(launch: Launch) -> None:
    """Rule 9: nothing that lives lists it any more, and it may be gone."""
    refs = [save_and_keep(launch) for _ in range(5)]
    gone = refs[2].name
    launch.train(1)
    zero, _ = launch.vote(0), launch.vote(1)
    at = next(iter(zero.files.values()))
    false = msgspec.structs.replace(zero, files=zero.files | {f"{gone}/rank-00000.safetensors": at})
    (folder_of(launch) / "rank-00000.part").write_bytes(votes.encode_part(false))
    with pytest.raises(Disagreed, match="belongs to a retired snapshot"):
        launch.commit()


def test_a_disk_that_refuses_to_delete_is_storage_failed(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        save_and_keep(launch)
    launch.train(1)
    commit = launch.save()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(StorageFailed, match="cannot delete below"):
        launch.keep(commit)
    assert recovery_point(launch.run) == commit.snapshot
