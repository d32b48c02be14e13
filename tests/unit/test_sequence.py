"""The contract of a sequence: one order, created only if absent, durable before anyone acts.

Another backend (object storage, a database) has to pass what is not about files.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.protocol import attempt, committed
from walrecover import entries as model
from walrecover import failpoints, files
from walrecover import sequence as sequences
from walrecover.entries import Entry
from walrecover.errors import Corrupt, StorageFailed, UnsupportedVersion
from walrecover.failpoints import FailpointReached
from walrecover.sequence import Sequence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sequence").mkdir()
    return tmp_path / "sequence"


@pytest.fixture(autouse=True)
def disarmed() -> object:
    yield
    failpoints.arm("")


def fill(folder: Path, *entries: Entry) -> Sequence:
    sequence = Sequence(folder)
    for place, entry in enumerate(entries):
        assert sequence.create_next(place, entry)
    return sequence


def temporary(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def failing(error: int, calls: list[object] | None = None) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        if calls is not None:
            calls.append(arguments)
        raise OSError(error, os.strerror(error))

    return fail


# --- create and read ----------------------------------------------------------------------------


def test_an_empty_sequence(folder: Path) -> None:
    assert Sequence(folder).read() == []
    assert Sequence(folder / "missing").read() == []


def test_entries_come_back_in_order(folder: Path) -> None:
    written = [attempt(1), committed(2, 1), committed(4, 1)]
    assert fill(folder, *written).read() == written
    assert Sequence(folder).read() == written
    assert sorted(os.listdir(folder)) == ["00000001.json", "00000002.json", "00000003.json"]


def test_an_entry_is_created_only_if_it_is_absent(folder: Path) -> None:
    sequence = fill(folder, attempt(1))
    assert not sequence.create_next(0, attempt(2))
    assert sequence.read() == [attempt(1)]
    assert temporary(folder) == []


def test_a_reader_sees_what_others_entered_since(folder: Path) -> None:
    reader = Sequence(folder)
    assert reader.read() == []
    fill(folder, attempt(1))
    assert reader.read() == [attempt(1)]
    Sequence(folder).create_next(1, committed(2, 1))
    assert reader.read() == [attempt(1), committed(2, 1)]


def test_what_a_reader_gave_away_is_not_its_memory(folder: Path) -> None:
    sequence = fill(folder, attempt(1))
    sequence.read().clear()
    assert sequence.read() == [attempt(1)]


def test_a_reader_of_another_directory_under_the_same_name_starts_over(folder: Path) -> None:
    reader = fill(folder, attempt(1), committed(2, 1))
    assert len(reader.read()) == 2
    for name in os.listdir(folder):
        (folder / name).unlink()
    fill(folder, attempt(7))
    assert reader.read() == [attempt(7)]


def test_numbers_beyond_eight_digits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sequences._name(123456789) == "123456789.json"
    assert sequences._NAME.fullmatch("123456789.json")
    for false in ("0123456789.json", "7.json", "٠٠٠٠٠٠٠١.json", "00000001.json\n"):
        assert not sequences._NAME.fullmatch(false)


# --- settling -----------------------------------------------------------------------------------


def test_the_loser_reads_again_and_decides_anew(folder: Path) -> None:
    sequence = fill(folder, attempt(1))
    seen: list[int] = []

    def decide(found: list[Entry]) -> Entry:
        seen.append(len(found))
        if len(found) == 1:
            Sequence(folder).create_next(1, committed(2, 1))  # somebody else is faster
        return attempt(len(found) + 1)

    entries, ours = sequence.settle(decide)
    assert seen == [1, 2]
    assert ours and entries == [attempt(1), committed(2, 1), attempt(3)]
    assert Sequence(folder).read() == entries


def test_a_refusal_that_is_about_the_past_is_decided_anew(folder: Path) -> None:
    """What a slow starter had read was retired and deleted meanwhile: nothing verifies, for it."""
    sequence = fill(folder, attempt(1))

    def decide(found: list[Entry]) -> Entry:
        if len(found) == 1:
            Sequence(folder).create_next(1, committed(2, 1))
            raise Corrupt("nothing verifies")
        raise StorageFailed("busy")

    with pytest.raises(StorageFailed, match="busy"):
        sequence.settle(decide)


def test_deciding_that_there_is_nothing_to_do(folder: Path) -> None:
    sequence = fill(folder, attempt(1))
    assert sequence.settle(lambda found: None) == ([attempt(1)], False)


@pytest.mark.parametrize("decision", [None, committed(2, 1)])
def test_nobody_decides_on_what_is_not_durable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decision: Entry | None
) -> None:
    """Files are deleted because of a retirement that was only read (rules 1 and 9)."""
    sequence = fill(folder, attempt(1))
    order: list[str] = []
    real = sequences.sync_directory

    def sync(path: Path) -> None:
        order.append("synced")
        real(path)

    def decide(found: list[Entry]) -> Entry | None:
        order.append("decided")
        return decision

    monkeypatch.setattr(sequences, "sync_directory", sync)
    sequence.settle(decide)
    assert order[:2] == ["synced", "decided"]
    monkeypatch.setattr(sequences, "sync_directory", failing(errno.EIO))
    with pytest.raises(StorageFailed, match="cannot make the sequence durable"):
        sequence.settle(lambda found: pytest.fail("it decided"))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_before_the_link_enters_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(os, "link", failing(error))
    with pytest.raises(StorageFailed, match="cannot write sequence entry 1"):
        Sequence(folder).create_next(0, attempt(1))
    assert os.listdir(folder) == []


def test_an_error_after_the_link_is_settled_by_reading_back(folder: Path) -> None:
    failpoints.arm("sequence.entry.linked:enospc")
    assert Sequence(folder).create_next(0, attempt(1))
    assert Sequence(folder).read() == [attempt(1)]


def test_a_link_whose_answer_was_lost_is_settled_by_reading_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS: the link happened, its answer was lost, and the repeated request says EEXIST."""
    real = os.link

    def link(*names: object, **options: object) -> None:
        real(*names, **options)  # type: ignore[arg-type]
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link)
    assert Sequence(folder).create_next(0, attempt(1))
    assert not Sequence(folder).create_next(0, attempt(2))


def test_an_error_while_somebody_else_was_faster_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path, **options: object) -> None:
        Path(target).write_bytes(model.encode(attempt(9)))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageFailed):
        Sequence(folder).create_next(0, attempt(1))


@pytest.mark.parametrize("call", [1, 2])
def test_a_failed_fsync_is_not_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """P9: the second fsync of what the first one lost succeeds, and proves nothing.

    Call 1 is the entry's under its temporary name, call 2 the folder's behind the link.
    """
    calls: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == call:
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageFailed, match="cannot write sequence entry 1"):
        Sequence(folder).create_next(0, attempt(1))
    assert len(calls) == call


@pytest.mark.parametrize(
    "name", ["sequence.entry.written", "sequence.entry.linked", "sequence.entry.synced"]
)
def test_after_a_death_inside_there_is_an_entry_or_none(folder: Path, name: str) -> None:
    failpoints.arm(f"{name}:raise")
    with pytest.raises(FailpointReached):
        Sequence(folder).create_next(0, attempt(1))
    failpoints.arm("")
    assert Sequence(folder).read() == ([] if name.endswith("written") else [attempt(1)])
    entries, ours = Sequence(folder).settle(lambda found: attempt(len(found) + 1))
    assert ours and entries == Sequence(folder).read()


def test_left_temporary_names_are_nobodys_entries(folder: Path) -> None:
    fill(folder, attempt(1))
    (folder / ".00000002.json.0123456789abcdef").write_bytes(b"torn")
    (folder / "00000002.json~").write_bytes(b"an editor's")
    assert Sequence(folder).read() == [attempt(1)]


# --- damage -------------------------------------------------------------------------------------


def test_a_gap_is_corrupt(folder: Path) -> None:
    fill(folder, attempt(1), committed(2, 1), committed(4, 1))
    (folder / "00000002.json").unlink()
    with pytest.raises(Corrupt, match=r"entry 2 is missing in .*, though 3 exists"):
        Sequence(folder).read()


def test_a_listing_beside_two_creations_is_no_gap(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long folder is listed in pieces: of two entries made meanwhile it may hold the second."""
    fill(folder, attempt(1), committed(2, 1), committed(4, 1))
    real, listings = os.listdir, 0

    def listdir(path: object) -> list[str]:
        nonlocal listings
        listings += 1
        names = real(path)  # type: ignore[call-overload]
        return [name for name in names if listings > 1 or name != "00000002.json"]

    monkeypatch.setattr(os, "listdir", listdir)
    assert len(Sequence(folder).read()) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(path.read_bytes() + bytes(model.MAX_ENTRY_BYTES)),
        lambda path: (path.unlink(), path.symlink_to("00000001.json")),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["empty", "cut", "oversized", "link", "dangling", "folder", "fifo"],
)
def test_a_damaged_entry_is_corrupt(folder: Path, damage: Callable[[Path], object]) -> None:
    fill(folder, attempt(1), committed(2, 1), committed(4, 1))
    damage(folder / "00000002.json")
    with pytest.raises(Corrupt):
        Sequence(folder).read()


def test_a_newer_format_is_not_damage(folder: Path) -> None:
    fill(folder, attempt(1))
    (folder / "00000002.json").write_bytes(b'{"format": 2}')
    with pytest.raises(UnsupportedVersion, match="sequence entry 2: format 2"):
        Sequence(folder).read()


# --- races --------------------------------------------------------------------------------------

WRITERS, ROUNDS = 2, 100


def run_threads(folder: Path) -> dict[str, list[int]]:
    """Each writer enters its entries; returns at which number each was told that it stands."""
    told: dict[str, list[int]] = {f"writer-{n}": [] for n in range(WRITERS)}
    start = threading.Barrier(WRITERS)

    def write(name: str) -> None:
        sequence = Sequence(folder)
        start.wait()
        for count in range(ROUNDS):
            entry = model.CommitEntry(
                id=f"{name}/{count}", at=0.0, snapshot=model.SnapshotRef(count, 1, name[-1], "m")
            )
            entries, ours = sequence.settle(lambda found, entry=entry: entry)  # type: ignore[misc]
            assert ours and entries[-1] == entry
            told[name].append(len(entries))

    threads = [threading.Thread(target=write, args=(name,)) for name in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def check_one_order(folder: Path, told: dict[str, list[int]]) -> None:
    found = Sequence(folder).read()
    assert len(found) == WRITERS * ROUNDS
    for name, numbers in told.items():
        assert [found[n - 1].id for n in numbers] == [f"{name}/{c}" for c in range(ROUNDS)]
        assert numbers == sorted(numbers)


def test_racing_threads_make_one_order(folder: Path) -> None:
    check_one_order(folder, run_threads(folder))
    assert temporary(folder) == []


def race_processes(folder: Path) -> dict[str, list[int]]:
    """The same with processes, which share nothing but the folder."""
    told: dict[str, list[int]] = {}
    children = []
    for writer in range(WRITERS):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                sequence = Sequence(folder)
                for count in range(ROUNDS):
                    entry = model.CommitEntry(
                        id=f"writer-{writer}/{count}",
                        at=0.0,
                        snapshot=model.SnapshotRef(count, 1, str(writer), "m"),
                    )
                    entries, _ = sequence.settle(lambda found, entry=entry: entry)  # type: ignore[misc]
                    os.write(into, b"%d\n" % len(entries))
                code = 0
            finally:
                os._exit(code)
        os.close(into)
        children.append((writer, pid, out))
    for writer, pid, out in children:
        with os.fdopen(out) as file:
            told[f"writer-{writer}"] = [int(line) for line in file]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return told


def test_racing_processes_make_one_order(folder: Path) -> None:
    check_one_order(folder, race_processes(folder))


def test_rename_in_place_of_link_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: rename replaces, and loses entries that somebody was told of."""
    monkeypatch.setattr(os, "link", lambda source, target, **_: os.rename(source, target))
    with pytest.raises(AssertionError):
        assert not fill(folder, attempt(1)).create_next(0, attempt(2))
    for name in os.listdir(folder):
        (folder / name).unlink()
    with pytest.raises((AssertionError, Corrupt)):
        check_one_order(folder, run_threads(folder))


def test_nothing_is_acknowledged_before_the_folder_is_synced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = files.sync_directory

    def sync(path: Path) -> None:
        assert os.path.exists(folder / "00000001.json")
        synced.append(path)
        real(path)

    monkeypatch.setattr(files, "sync_directory", sync)
    assert Sequence(folder).create_next(0, attempt(1))
    assert synced == [folder]
