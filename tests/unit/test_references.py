"""What did not change is referenced: what is written, what stays, what is refused."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.streams import read
from tests.support.protocol import (
    FROZEN_BYTES,
    Launch,
    candidates,
    capture,
    check_state,
    entries_of,
    files_below,
    frozen,
    load,
    recovery_point,
    state_after,
    tensor,
)
from walrecover import events as ev
from walrecover import manifest as votes
from walrecover import shards, snapshot
from walrecover.entries import SnapshotRef
from walrecover.errors import Corrupt
from walrecover.fork import fork
from walrecover.manifest import Manifest, Part
from walrecover.reuse import Offer, Past
from walrecover.rundir import RunDir
from walrecover.session.saving import Saver
from walrecover.snapshot import DeadReference


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / ".walrecover", "a-run")


@pytest.fixture
def launch(run: RunDir) -> Iterator[Launch]:
    with Launch.begin(run) as begun:
        yield begun


def saved(launch: Launch, times: int = 1) -> list[SnapshotRef]:
    refs = []
    for _ in range(times):
        launch.train(1)
        refs.append(launch.save().snapshot)
    return refs


def kept(launch: Launch, times: int = 1) -> list[SnapshotRef]:
    refs = []
    for _ in range(times):
        launch.train(1)
        commit = launch.save()
        launch.keep(commit)
        refs.append(commit.snapshot)
    return refs


def manifest_of(run: RunDir, ref: SnapshotRef) -> Manifest:
    return snapshot.load_manifest(run, ref)


def bytes_written(run: RunDir, ref: SnapshotRef) -> int:
    return sum(p.stat().st_size for p in (run.snapshots / ref.name).glob("*.safetensors"))


def flip(run: RunDir, path: str, found: bytes) -> None:
    """One bit of these bytes in a file."""
    data = bytearray((run.snapshots / path).read_bytes())
    data[data.index(found)] ^= 1
    (run.snapshots / path).write_bytes(data)


# --- what is written ------------------------------------------------------------------------------


def test_what_did_not_change_is_written_once_for_each_line(run: RunDir, launch: Launch) -> None:
    """Of every rank, and what all hold alike by rank 0 alone."""
    refs = saved(launch, 6)
    written = [bytes_written(run, ref) for ref in refs]
    assert all(size > 3 * FROZEN_BYTES for size in written[:2])
    assert all(size < 3000 for size in written[2:])
    for number, ref in enumerate(refs[2:], start=2):
        first = refs[number % 2].name
        assert set(manifest_of(run, ref).older_files()) == {
            f"{first}/rank-00000.safetensors",
            f"{first}/rank-00001.safetensors",
        }
    for ref in refs:
        check_state(run, ref)
        snapshot.verify(run, ref)


def test_neighbours_share_no_file(run: RunDir, launch: Launch) -> None:
    """Rule 10: damage of any one file leaves the newest snapshot or the one before it."""
    refs = saved(launch, 5)
    listed = [set(manifest_of(run, ref).files()) for ref in refs]
    for one, other in itertools.pairwise(listed):
        assert one.isdisjoint(other)


def test_damage_to_a_shared_file_leaves_the_other_line(run: RunDir, launch: Launch) -> None:
    refs = saved(launch, 6)
    flip(run, f"{refs[1].name}/rank-00000.safetensors", frozen())
    assert recovery_point(run) == refs[4]
    for ref in (refs[5], refs[3], refs[1]):
        with pytest.raises(Corrupt, match="frozen"):
            snapshot.verify(run, ref)


def test_a_changed_tensor_is_written_whatever_was_offered(tmp_path: Path) -> None:
    """The digest decides, not the offer."""
    before, after = "step-00000001.a1-0", "step-00000002.a1-0"
    for name in (before, after):
        (tmp_path / name).mkdir()
    tensors = {name: tensor(bytes([n]) * 2000) for n, name in enumerate(("same", "other"))}
    file, old = shards.write_tensors(tmp_path, f"{before}/rank-00000.safetensors", tensors)
    offers = {name: Offer(at, file) for name, at in old.items()}
    moved = {**tensors, "other": tensor(b"\x07" * 2000)}
    mine = f"{after}/rank-00000.safetensors"
    _, found = shards.write_tensors(tmp_path, mine, moved, offers=offers)
    assert [found[name].file for name in ("same", "other")] == [mine, mine], "under half is alive"
    (tmp_path / mine).unlink()
    whole = {**offers, "other": offers["other"]}
    _, found = shards.write_tensors(tmp_path, mine, tensors, offers=whole)
    assert {at.file for at in found.values()} == {f"{before}/rank-00000.safetensors"}
    with shards.Shard(tmp_path, mine, shards._describe(tmp_path, mine)) as shard:
        assert shard._spans == {}


def test_of_one_changed_and_one_not_only_the_first_is_written(tmp_path: Path) -> None:
    before, after = "step-00000001.a1-0", "step-00000002.a1-0"
    for name in (before, after):
        (tmp_path / name).mkdir()
    same = tensor(b"s" * 5000)
    tensors = {"same": same, "tied": same, "small": tensor(b"o" * 50)}
    file, old = shards.write_tensors(tmp_path, f"{before}/rank-00000.safetensors", tensors)
    offers = {name: Offer(at, file) for name, at in old.items()}
    moved = {**tensors, "small": tensor(b"p" * 50)}
    mine = f"{after}/rank-00000.safetensors"
    made, found = shards.write_tensors(tmp_path, mine, moved, offers=offers)
    assert found["same"] == found["tied"] == old["same"]
    assert found["small"].file == mine and made.bytes < 500
    shards.verify_files(
        tmp_path, {mine: made, f"{before}/rank-00000.safetensors": file}, found.items()
    )


def test_a_resumed_attempt_goes_on_with_its_bases_line(run: RunDir, launch: Launch) -> None:
    base = saved(launch, 4)[-1]
    with Launch.begin(run) as second:
        refs = saved(second, 4)
        older = [{p.split("/")[0] for p in manifest_of(run, r).older_files()} for r in refs]
        line = {p.split("/")[0] for p in manifest_of(run, base).older_files()}
        assert older == [set(), line, {refs[0].name}, line]
        for ref in refs:
            check_state(run, ref)


# --- what stays -----------------------------------------------------------------------------------


def test_what_lives_loads_however_often_others_were_retired(run: RunDir, launch: Launch) -> None:
    for _ in range(9):
        kept(launch)
        for ref in candidates(run):
            check_state(run, ref)
    assert len(candidates(run)) == 2
    left = [path for path in files_below(run.snapshots) if path.suffix == ".safetensors"]
    assert len(left) == 2 * len(candidates(run)) + 2 * 2
    size = sum(path.stat().st_size for path in left)
    whole = max(path.stat().st_size for path in left) * 2
    assert size < 3 * whole


def test_what_nobody_references_any_more_goes(run: RunDir, launch: Launch) -> None:
    first = kept(launch, 5)[0]
    with Launch.begin(run) as second:
        kept(second, 6)
        third = [ref.name for ref in candidates(run)]
        older = {
            p.split("/")[0] for r in candidates(run) for p in manifest_of(run, r).older_files()
        }
        assert set(os.listdir(run.snapshots)) == {*third, *older}
        assert len(older) == 2 and first.name in older


def test_while_a_live_manifest_cannot_be_read_nothing_goes(
    run: RunDir, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can know what it references."""
    refs = kept(launch, 4)
    snapshot._listings.clear()
    (run.snapshots / refs[3].name / "manifest.json").rename(run.path / "aside")
    before = sorted(files_below(run.snapshots))
    commit = saved(launch)[0]
    gone = [path for path in before if not path.exists()]
    snapshot.delete_void(run, entries_of(run))
    assert gone == [] and [path for path in before if not path.exists()] == []
    assert commit in candidates(run)
    (run.path / "aside").rename(run.snapshots / refs[3].name / "manifest.json")
    check_state(run, refs[3])


def test_a_crash_in_the_middle_of_a_deletion_leaves_what_is_referenced(
    run: RunDir, launch: Launch
) -> None:
    kept(launch, 4)
    found = entries_of(run)
    for ref in candidates(run):
        check_state(run, ref)
    for _ in range(2):
        snapshot.delete_void(run, found)
    for ref in candidates(run):
        check_state(run, ref)


def test_who_deletes_by_an_old_reading_spares_what_is_referenced(
    run: RunDir, launch: Launch
) -> None:
    """What is dead is dead for good; what an old reading takes for alive may stay for once."""
    readings = []
    for _ in range(5):
        kept(launch)
        readings.append(entries_of(run))
    with Launch.begin(run) as second:
        for _ in range(5):
            kept(second)
            for found in readings:
                snapshot.delete_void(run, found)
            for ref in candidates(run):
                check_state(run, ref)
            readings.append(entries_of(run))


def test_what_a_rewind_leaves_goes_and_what_the_base_references_stays(
    run: RunDir, launch: Launch
) -> None:
    refs = saved(launch, 6)
    for ref in refs[4:]:
        (run.snapshots / ref.name / "rank-00000.msgpack").write_bytes(b"")
    with Launch.begin(run) as second:
        assert second.entry.plan.base == refs[3]
        kept(second, 4)
        for ref in candidates(run):
            check_state(run, ref)
        assert not (run.snapshots / refs[5].name).exists()


def test_a_fork_takes_what_its_snapshot_references(run: RunDir, launch: Launch) -> None:
    refs = kept(launch, 6)
    made = fork(run, refs[-1].step, name="b")
    check_state(made.run, refs[-1])
    shutil.rmtree(run.snapshots)
    with Launch.begin(made.run) as forked:
        assert forked.entry.plan.base == refs[-1]
        kept(forked, 6)
        for ref in candidates(made.run):
            check_state(made.run, ref)
        folders = {path.parent.name for path in files_below(made.run.snapshots)}
        assert refs[-1].name not in folders


# --- what is refused ------------------------------------------------------------------------------


class Stubborn(Past):
    """Offers what it was given, whatever became of it since."""

    def __init__(self, given: dict[str, Offer]) -> None:
        super().__init__()
        self.given = given

    def offers(self) -> dict[str, Offer]:
        return self.given


def test_a_vote_that_references_what_no_live_manifest_lists_is_refused(
    run: RunDir, launch: Launch
) -> None:
    """Its files may be gone already, or go at any time."""
    refs = saved(launch, 3)
    old = manifest_of(run, refs[1]).parts
    with Launch.begin(run) as second:
        kept(second, 4)
        newest = candidates(run)[0]
        listed = {path for ref in candidates(run) for path in manifest_of(run, ref).files()}
        assert listed.isdisjoint(path for part in old for path in part.files)
        second.pasts = [Stubborn(_offers(part)) for part in old]
        second.train(1)
        with pytest.raises(DeadReference, match="belongs to a retired snapshot"):
            second.save()
        assert candidates(run)[0] == newest


def test_a_reference_with_another_header_is_refused(run: RunDir, launch: Launch) -> None:
    refs = saved(launch, 3)
    launch.train(1)
    zero, _ = launch.vote(0), launch.vote(1)
    path, at = next((p, a) for p, a in zero.files.items() if refs[1].name in p)
    false = msgspec.structs.replace(zero, files=zero.files | {path: type(at)(at.bytes, "blake3:?")})
    name = next(iter(zero.files)).split("/")[0]
    (run.snapshots / name / "rank-00000.part").write_bytes(votes.encode_part(false))
    with pytest.raises(DeadReference):
        launch.commit()


def _offers(part: Part) -> dict[str, Offer]:
    return {
        name: Offer(at, part.files[at.file])
        for name, at in part.tensors.items()
        if at.file in part.files
    }


# --- the saver ------------------------------------------------------------------------------------


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def savers(launch: Launch, said: list[str]) -> Iterator[list[Saver]]:
    made = [
        Saver(
            launch.run, launch.journals[rank], attempt=launch.entry.number,
            nonce=launch.entry.nonce, rank=rank, world=2, verified=frozenset(), retention=2,
            say=said.append,
        )
        for rank in range(2)
    ]  # fmt: skip
    yield made
    for one in made:
        one.close()


def save_all(savers: list[Saver], launch: Launch) -> SnapshotRef | None:
    """As a session does it: every rank votes, rank 0's keeper commits and retires."""
    launch.train(1)
    before = candidates(launch.run)
    for saver in reversed(savers):
        saver.note_commits()
        taken = capture(launch.run.name, launch.entry, saver.rank, 2, launch.step)
        assert saver.save(taken)
    done = savers[0].wait(savers[0].tried)  # type: ignore[arg-type]
    savers[0].drain()
    after = candidates(launch.run)
    return after[0] if done and after[:1] != before[:1] else None


def test_ranks_that_learn_of_commits_by_themselves_reference(
    run: RunDir, launch: Launch, savers: list[Saver], said: list[str]
) -> None:
    for _ in range(8):
        assert save_all(savers, launch) is not None
    for ref in candidates(run):
        check_state(run, ref)
        assert len(manifest_of(run, ref).older_files()) == 2
        assert bytes_written(run, ref) < 3000
    assert said == []
    for rank in (0, 1):
        launch.journals[rank].sync()
        sizes = [
            sum(file.bytes for file in event.files if file.name.endswith(".safetensors"))
            for _, event in read(launch.journals[rank].path)
            if isinstance(event, ev.ShardsWritten)
        ]
        assert len(sizes) == 8 and all(size < 3000 for size in sizes[2:])
        assert all(size > FROZEN_BYTES for size in sizes[:2])


def test_a_damaged_file_is_not_referenced_for_ever(
    run: RunDir, launch: Launch, savers: list[Saver], said: list[str]
) -> None:
    """Rank 1's file: it learns from rank 0 that what it referenced does not read back."""
    refs = [save_all(savers, launch) for _ in range(4)]
    assert refs[1] is not None
    flip(run, f"{refs[1].name}/rank-00001.safetensors", frozen(1))
    whole = []
    for _ in range(8):
        ref = save_all(savers, launch)
        assert ref is not None
        try:
            snapshot.verify(run, ref)
            whole.append(True)
        except Corrupt:
            whole.append(False)
    assert whole[0] and False in whole[:2]
    assert all(whole[2:]), whole
    assert any("does not read back" in line for line in said)
    older = manifest_of(run, candidates(run)[0]).older_files()
    assert older and f"{refs[1].name}/rank-00001.safetensors" not in older


def test_a_snapshot_refused_for_a_dead_reference_is_followed_by_a_whole_one(
    run: RunDir, launch: Launch, savers: list[Saver], said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for _ in range(3):
        save_all(savers, launch)
    real = snapshot._refuse_dead
    refused: list[Manifest] = []

    def refuse(run: RunDir, found: object, manifest: Manifest) -> None:
        if manifest.older_files() and not refused:
            refused.append(manifest)
            raise DeadReference("it is gone")
        real(run, found, manifest)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "_refuse_dead", refuse)
    assert save_all(savers, launch) is None
    assert said == ["the snapshot of step 4 was abandoned: it is gone"]
    ref = save_all(savers, launch)
    assert ref is not None and len(refused) == 1
    listed = set(manifest_of(run, ref).files())
    assert listed.isdisjoint(refused[0].older_files())
    check_state(run, ref)


def test_tensors_are_read_through_references(run: RunDir, launch: Launch) -> None:
    ref = saved(launch, 3)[-1]
    assert load(run, ref)[1, "own frozen"] == frozen(1)
    assert load(run, ref)[0, "weights"] == state_after(3)
