"""Export and import: the same run again, beside a living one, damaged ones, and everything that an
archive can be instead of one.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest
import zstandard

from tests.support import archives
from tests.support.archives import Members, member, summed
from tests.support.protocol import (
    Launch,
    candidates,
    check_state,
    entries_of,
    files_below,
    holder,
)
from tests.unit.test_adopt_store import Place, zipped
from walrecover import archive, failpoints, gathering, recovery, snapshot, verifying
from walrecover.archive import Statement
from walrecover.errors import (
    BadInput,
    Corrupt,
    RunBusy,
    StorageFailed,
    Torn,
    UnsupportedVersion,
    WalrecoverError,
)
from walrecover.exporting import export
from walrecover.importing import bring_back
from walrecover.journal.stream import key_of
from walrecover.processes import identity, started_at
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two attempts, exported once for all."""
    folder = tmp_path_factory.mktemp("made")
    run = RunDir(folder / ".walrecover", "a-run")
    train(run, 3)
    train(run, 2)
    export(run, folder / "a.tar.zst")
    return folder


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """An archive to break."""
    copy = tmp_path / "a.tar.zst"
    copy.write_bytes((made / "a.tar.zst").read_bytes())
    return copy


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / ".walrecover", "a-run")
    train(found, 3)
    return found


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def train(run: RunDir, saves: int) -> None:
    with Launch.begin(run) as launch:
        for _ in range(saves):
            launch.train(2)
            launch.keep(launch.save(), 3)
        launch.train()


def contents(run: RunDir, *names: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for name in names
        for path in files_below(run.path / name)
    }


def nothing_is_left(root: Path) -> None:
    assert not (root / "runs").exists() or os.listdir(root / "runs") == []


def problems(run: RunDir) -> list[str]:
    return [one.name for one in verifying.verify(run, entries_of(run)) if one.problem]


# --- the same run again -------------------------------------------------------------------------


def test_a_run_that_was_brought_back_is_the_same(made: Path, tmp_path: Path) -> None:
    old = RunDir(made / ".walrecover", "a-run")
    brought = bring_back(made / "a.tar.zst", tmp_path)
    new = brought.run
    assert (new.root, new.name) == (tmp_path, "a-run")
    assert contents(new, "sequence") == contents(old, "sequence")
    listed = {f"snapshots/{f}" for ref in candidates(old) for f in snapshot.files_of(old, ref)}
    listed |= {f"snapshots/{ref.name}/manifest.json" for ref in candidates(old)}
    kept = contents(new, "snapshots")
    assert kept.keys() == listed
    assert all((old.path / name).read_bytes() == data for name, data in kept.items())
    assert recovery.fold_run(new).records == recovery.fold_run(old).records
    assert problems(new) == []
    plans = [begin_attempt(run, holder()).entry.plan for run in (old, new)]
    assert plans[0] == plans[1] and plans[0].base is not None
    check_state(new, plans[0].base)


def test_it_goes_on_as_any_other(made: Path, tmp_path: Path) -> None:
    new = bring_back(made / "a.tar.zst", tmp_path, name="again").run
    before = candidates(new)[0].step
    train(new, 3)
    assert candidates(new)[0].step == before + 6
    assert problems(new) == []
    export(new, tmp_path / "b.tar.zst")
    other = bring_back(tmp_path / "b.tar.zst", tmp_path / "other").run
    assert (other.name, candidates(other)) == ("again", candidates(new))


def test_tar_and_sha256sum_are_enough(made: Path, tmp_path: Path) -> None:
    data = (
        zstandard.ZstdDecompressor().decompressobj().decompress((made / "a.tar.zst").read_bytes())
    )
    subprocess.run(["tar", "x"], input=data, cwd=tmp_path, check=True)
    checked = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"],
        cwd=tmp_path / "a-run", capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0
    files = [path for path in files_below(tmp_path / "a-run") if path.name != "SHA256SUMS"]
    assert checked.stdout.count(": OK") == len(files)
    assert "walrecover import" in (tmp_path / "a-run" / "README.md").read_text()


def test_an_imported_run_is_not_held_by_who_holds_the_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    other = msgspec.structs.replace(identity(), pid=os.getppid(), started=started_at(os.getppid()))
    with Launch.begin(run, other) as launch:
        launch.train()
        launch.save()
        export(run, tmp_path / "a.tar.zst")
    new = bring_back(tmp_path / "a.tar.zst", run.root, name="b").run
    with pytest.raises(RunBusy):
        begin_attempt(run, holder())
    state = recovery.fold_run(new)
    assert not state.driven_here(state.entries[0])
    begin_attempt(new, holder())
    begin_attempt(new, other)
    with pytest.raises(RunBusy):  # this one is driven here
        begin_attempt(new, holder())


def test_journals_that_lie_elsewhere_come_back_elsewhere(tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run", tmp_path / "local")
    train(run, 2)
    export(run, tmp_path / "a.tar.zst")
    new = bring_back(tmp_path / "a.tar.zst", tmp_path / "n", journal=tmp_path / "there").run
    assert (tmp_path / "there" / "a-run" / "journal").is_dir()
    assert not (new.path / "journal").exists()
    assert recovery.fold_run(new).records == recovery.fold_run(run).records
    with pytest.raises(BadInput, match="holds journals already"):
        bring_back(tmp_path / "a.tar.zst", tmp_path / "m", journal=tmp_path / "there")
    nothing_is_left(tmp_path / "m")


def test_versions_of_adopted_files_come_along(run: RunDir, tmp_path: Path) -> None:
    place = Place(tmp_path / "tree") if (tmp_path / "tree").mkdir() is None else None
    assert place is not None
    for number in (1, 2):
        place.path().write_bytes(zipped(number))
        place.keep()
    os.rename(place.store.folder, run.path / "adopted")
    bad = sorted((run.path / "adopted" / "files").iterdir())[0]
    bad.chmod(0o600)
    bad.write_bytes(b"other")
    done = export(run, tmp_path / "a.tar.zst")
    assert [one.name for one in done.statement.left_out] == ["adopted/records/00000001.json"]
    new = bring_back(tmp_path / "a.tar.zst", tmp_path / "n").run
    assert contents(new, "adopted").keys() == {
        "adopted/records/00000002.json",
        "adopted/files/00000002-model.pt",
    }
    assert contents(new, "adopted").items() <= contents(run, "adopted").items()


# --- what is not whole --------------------------------------------------------------------------


def test_a_damaged_snapshot_is_left_out_and_named(run: RunDir, tmp_path: Path) -> None:
    newest, before = candidates(run)[:2]
    (run.snapshots / newest.name / "rank-00000.msgpack").write_bytes(b"")
    done = export(run, tmp_path / "a.tar.zst")
    assert [(one.what, one.name) for one in done.statement.left_out] == [("snapshot", newest.name)]
    new = bring_back(tmp_path / "a.tar.zst", tmp_path / "n").run
    assert problems(new) == [newest.name]
    plan = begin_attempt(new, holder()).entry.plan
    assert plan.base == before
    assert [one.step for one in plan.rejected] == [newest.step]


def test_where_nothing_verifies_nothing_is_written(run: RunDir, tmp_path: Path) -> None:
    for ref in candidates(run):
        (run.snapshots / ref.name / "rank-00000.msgpack").write_bytes(b"")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Corrupt, match=r"no snapshot of run a-run verifies: .*msgpack has 0 bytes"):
        export(run, tmp_path / "a.tar.zst")
    assert sorted(os.listdir(tmp_path)) == before
    assert os.listdir(run.root / "runs") == ["a-run"]


def test_of_a_damaged_stream_the_good_events_are_kept(run: RunDir, tmp_path: Path) -> None:
    path = str(next(run.journal.glob("*/rank-0")))
    with lmdb.open(path, lib_version=0) as stream, stream.begin(write=True) as transaction:
        transaction.put(key_of(4), bytes(60))
    whole = len(recovery.fold_run(run).records)
    done = export(run, tmp_path / "a.tar.zst")
    (lost,) = done.statement.left_out
    assert lost.what == "stream" and "events 1 to 3 are kept" in lost.problem
    new = bring_back(tmp_path / "a.tar.zst", tmp_path / "n").run
    assert problems(new) == []
    assert len(recovery.fold_run(new).records) == whole
    ends = [[r.lsn for r in recovery.fold_run(one).records.values()] for one in (run, new)]
    assert ends[0] == ends[1] and min(ends[1]) == 3


def test_an_empty_run_and_a_taken_name_are_told(run: RunDir, tmp_path: Path) -> None:
    empty = RunDir(run.root, "empty")
    empty.create()
    with pytest.raises(BadInput, match="run empty has nothing to export"):
        export(empty, tmp_path / "a.tar.zst")
    (tmp_path / "a.tar.zst").write_bytes(b"mine")
    with pytest.raises(BadInput, match="is there already"):
        export(run, tmp_path / "a.tar.zst")
    assert (tmp_path / "a.tar.zst").read_bytes() == b"mine"
    with pytest.raises(BadInput, match="is no folder to write an archive to"):
        export(run, tmp_path / "nowhere" / "a.tar.zst")


# --- beside a living run ------------------------------------------------------------------------


def test_what_is_retired_while_it_is_read_is_replaced_by_what_replaced_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with Launch.begin(run) as launch:
        for _ in range(2):
            launch.train()
            launch.keep(launch.save())
        before = [ref.step for ref in candidates(run)]
        link = gathering.link_or_copy
        turns = iter(range(100))

        def trains_on(source: Path, target: Path) -> None:
            if next(turns) == 2:
                for _ in range(4):
                    launch.train()
                    launch.keep(launch.save())
            link(source, target)

        monkeypatch.setattr(gathering, "link_or_copy", trains_on)
        done = export(run, tmp_path / "a.tar.zst")
    assert done.statement.left_out == ()
    new = bring_back(tmp_path / "a.tar.zst", tmp_path / "n").run
    assert problems(new) == []
    assert [ref.step for ref in candidates(new)] == [ref.step for ref in candidates(run)]
    assert candidates(new)[-1].step > before[0]


def test_streams_that_its_entries_do_not_know_are_left_to_the_next_export(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = entries_of(run)
    train(run, 2)
    monkeypatch.setattr(Sequence, "read", lambda self: known)
    export(run, tmp_path / "a.tar.zst")
    monkeypatch.undo()
    new = bring_back(tmp_path / "a.tar.zst", tmp_path / "n").run
    assert entries_of(new) == known
    assert {key.attempt for key in recovery.fold_run(new).records} == {1}


# --- what an archive can be instead of one ------------------------------------------------------


def added(name: str, **what: object) -> Callable[[Members], Members]:
    """An archive with one more member, with sums that fit: as its author would have made it."""

    def how(members: Members) -> Members:
        return summed([*members[:-1], member(name, **what)])  # type: ignore[arg-type]

    return how


def stated(**what: int) -> Callable[[Members], Members]:
    def how(members: Members) -> Members:
        said = msgspec.json.decode(members[0][1], type=Statement)
        said = msgspec.structs.replace(said, **what)
        name = members[0][0].name
        return summed([member(name, archive.encode_statement(said)), *members[1:-1]])

    return how


def without(place: str) -> Callable[[Members], Members]:
    return lambda members: [one for one in members if not one[0].name.endswith(place)]


def _wrong_sum(members: Members) -> Members:
    index = next(i for i, (m, _) in enumerate(members) if m.name.endswith(".safetensors"))
    found, data = members[index]
    return [*members[:index], (found, bytes(len(data))), *members[index + 1 :]]


def _sums_not_last(members: Members) -> Members:
    return [*members[:-2], members[-1], members[-2]]


def _forged(members: Members) -> Members:
    return summed(_wrong_sum(members))


def _no_sequence(members: Members) -> Members:
    kept = [one for one in members if "/sequence/" not in one[0].name]
    said = msgspec.json.decode(members[0][1], type=Statement)
    less = sum(len(data) for found, data in members if "/sequence/" in found.name)
    files = said.files - (len(members) - len(kept))
    return stated(files=files, bytes=said.bytes - less, entries=0)(kept)


def _twice(members: Members) -> Members:
    said = msgspec.json.decode(members[0][1], type=Statement)
    one = next(one for one in members if one[0].name.endswith("manifest.json"))
    again = [*members[:-1], one, members[-1]]
    return stated(files=said.files + 1, bytes=said.bytes + len(one[1]))(again)


def _below(members: Members) -> Members:
    one = next(one for one in members if one[0].name.endswith("manifest.json"))
    return added(f"{one[0].name}/x", data=b"x")(members)


TAMPERINGS: dict[str, tuple[Callable[[Members], Members], type[WalrecoverError], str]] = {
    "a path with ..": (added("a-run/../../x", data=b"x"), Corrupt, "leads out of the archive"),
    "an absolute path": (added("/tmp/x", data=b"x"), Corrupt, "is absolute"),
    "a strange name": (added("a-run/x.pth", data=b"x"), Corrupt, "has no place in run a-run"),
    "another top folder": (added("b/README.md", data=b"x"), Corrupt, "has no place in run a-run"),
    "a symbolic link": (
        added("a-run/sequence/00000099.json", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        Corrupt, "is a symbolic link",
    ),
    "a hard link": (
        added("a-run/sequence/00000099.json", kind=tarfile.LNKTYPE, link="a-run/README.md"),
        Corrupt, "is a hard link",
    ),
    "a device": (
        added("a-run/sequence/00000099.json", kind=tarfile.CHRTYPE), Corrupt, "is a device",
    ),
    "a pipe": (added("a-run/artefacts/a1-0/x", kind=tarfile.FIFOTYPE), Corrupt, "is a pipe"),
    "a folder": (added("a-run/sequence", kind=tarfile.DIRTYPE), Corrupt, "is a folder"),
    "a sparse file": (
        added("a-run/artefacts/a1-0/x", kind=tarfile.GNUTYPE_SPARSE), Corrupt, "is special",
    ),
    "a wrong sum": (_wrong_sum, Corrupt, "has another sum than SHA256SUMS says"),
    "a wrong sum that was summed again": (_forged, Corrupt, "does not verify"),
    "a missing file": (
        without("00000002.json"), Corrupt, "is in SHA256SUMS and not in the archive",
    ),
    "an extra file": (
        lambda members: [*members[:-1], member("a-run/artefacts/a1-0/x"), members[-1]],
        Corrupt, "more than it states",
    ),
    "an extra file that is stated": (
        lambda members: [
            *stated(files=msgspec.json.decode(members[0][1])["files"] + 1)(members)[:-1],
            member("a-run/artefacts/a1-0/x"),
            stated(files=msgspec.json.decode(members[0][1])["files"] + 1)(members)[-1],
        ],
        Corrupt, "is in the archive and not in SHA256SUMS",
    ),
    "a file twice": (_twice, Corrupt, "twice"),
    "a file below another": (_below, Corrupt, "has no place in run a-run"),
    "no sums": (without("SHA256SUMS"), Torn, "has no SHA256SUMS"),
    "a file behind the sums": (_sums_not_last, Corrupt, "comes behind the sums"),
    "no statement": (without("export.json"), BadInput, "does not begin with a statement"),
    "fewer bytes than stated": (stated(bytes=1 << 20), Corrupt, "less than it states"),
    "more bytes than stated": (stated(bytes=100), Corrupt, "more than it states"),
    "more files than stated": (stated(files=2), Corrupt, "more than it states"),
    "more bytes than there is room for": (stated(bytes=1 << 60), StorageFailed, "are free below"),
    "another format": (stated(format=2), UnsupportedVersion, "format 2"),
    "no run": (_no_sequence, Corrupt, "its sequence has 0 entries"),
    "fewer entries than stated": (stated(entries=99), Corrupt, "and it states 99"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_archive_is_refused(file: Path, tmp_path: Path, name: str) -> None:
    how, kind, says = TAMPERINGS[name]
    archives.change(file, how)
    with pytest.raises(WalrecoverError) as refused:
        bring_back(file, tmp_path / "n")
    assert (type(refused.value), says in str(refused.value)) == (kind, True), refused.value
    nothing_is_left(tmp_path / "n")


def test_an_untampered_one_is_not(file: Path, tmp_path: Path) -> None:
    archives.change(file, summed)
    assert problems(bring_back(file, tmp_path / "n").run) == []


def test_a_bomb_is_noticed_as_it_grows(file: Path, tmp_path: Path) -> None:
    """A gigabyte of zeros behind the last member, in 33 KB."""
    tar = zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes())
    file.write_bytes(archives.compress(tar + bytes(1 << 30)))
    with pytest.raises(Corrupt, match="holds more bytes than it states"):
        bring_back(file, tmp_path / "n")
    file.write_bytes(archives.compress(bytes(1 << 30)))
    with pytest.raises(Corrupt, match="holds more bytes than it states"):
        bring_back(file, tmp_path / "n")
    nothing_is_left(tmp_path / "n")


def test_a_header_that_is_a_bomb_is_refused_by_its_size(file: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo("a-run/export.json")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    file.write_bytes(archives.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240)))
    with pytest.raises(Corrupt, match="larger than any it should have"):
        bring_back(file, tmp_path / "n")


def test_a_frame_that_wants_too_much_memory_is_refused(file: Path, tmp_path: Path) -> None:
    tar = zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes())
    parameters = zstandard.ZstdCompressionParameters(window_log=29, write_content_size=False)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    file.write_bytes(wide.compress(tar) + wide.flush())
    with pytest.raises(Corrupt, match=r"it is damaged: .*memory"):
        bring_back(file, tmp_path / "n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is not compressed by zstd"),
        (b"hello", "it is not compressed by zstd"),
        (b"PK\3\4" + bytes(100), "it is not compressed by zstd"),
        (archives.compress(b""), "is not an archive of a run: empty file"),
        (archives.compress(b"hello"), "is not an archive of a run"),
        (archives.compress(os.urandom(10240)), "is not an archive of a run"),
        (archives.pack([member("x/y")]), "does not begin with a statement"),
    ],
)
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BadInput, match=says):
        bring_back(tmp_path / "x", tmp_path / "n")
    nothing_is_left(tmp_path / "n")


def test_what_cannot_be_read_is_said(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        bring_back(tmp_path / "none", tmp_path / "n")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        bring_back(tmp_path, tmp_path / "n")
    with pytest.raises(BadInput, match="cannot name a run"):
        bring_back(file, tmp_path / "n", name="../x")
    bring_back(file, tmp_path / "n")
    with pytest.raises(BadInput, match="is there already: choose another name for the run"):
        bring_back(file, tmp_path / "n")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(Corrupt, match="goes on behind its end"):
        bring_back(file, tmp_path / "m")
    nothing_is_left(tmp_path / "m")
