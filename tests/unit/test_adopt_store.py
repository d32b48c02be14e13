"""Keeping versions and putting them back, in one process: the model of Show 5, crashes at every
failpoint, damage, links, late keepers."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.savers import SAVERS, Saver, complete, in_place, renamed, tensors, zipped
from walrecover import failpoints
from walrecover.adopt.patterns import Pattern, Stamp, find
from walrecover.adopt.settling import Setting, Telling, keep, settle
from walrecover.adopt.store import Store
from walrecover.adopt.tree import Changed, NotKept
from walrecover.events import Event, FileAdopted, FileRejected, FileRestored

POINTS = [name for name in failpoints.NAMES if name.startswith("adopt.")]
Contents = Callable[[int], bytes]


class Place:
    """A script's tree and what is kept of it. `look` is what the supervisor has done."""

    def __init__(self, tree: Path, pattern: str = "out/*") -> None:
        self.tree = tree
        (tree / "out").mkdir(exist_ok=True)
        self.store = Store(tree / ".walrecover" / "runs" / "r" / "adopted", tree, 3)
        self.store.create()
        self.patterns = [Pattern.parse(pattern, tree)]
        self.events: list[Event] = []
        self.said: list[str] = []
        self.telling = Telling(self.events.append, self.said.append)

    def look(self, *, boot: str = "boot", orderly: bool = False) -> None:
        setting = Setting(self.tree, self.tree / ".walrecover", self.patterns, boot, orderly)
        settle(self.store, setting, self.telling)

    def begin(self, boot: str = "boot") -> None:
        """As before an attempt."""
        self.look(boot=boot)
        self.store.mark_running(boot)

    def end(self, *, orderly: bool = False) -> None:
        """As after it."""
        self.look(orderly=orderly)
        self.store.mark_settled()

    def path(self, name: str = "model.pt") -> Path:
        return self.tree / "out" / name

    def keep(self, name: str = "model.pt", *, arrived: bool = False) -> None:
        stamp = Stamp.of(os.lstat(self.path(name)))
        keep(self.store, f"out/{name}", stamp, self.telling, arrived=arrived)

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.tree / "out").iterdir())

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- the model of Show 5 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "contents"), [("model.pt", zipped), ("model.safetensors", tensors)]
)
@pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)
def test_killed_at_every_event_of_a_save_it_comes_back_from_the_newest_whole_file(
    tmp_path: Path, saver: Saver, name: str, contents: Contents
) -> None:
    events = len(list(saver(tmp_path / "count", contents(2))))
    for at in range(events):
        tree = tmp_path / str(at)
        tree.mkdir()
        place = Place(tree, f"out/{name}")
        place.begin()
        path = place.path(name)
        complete(saver(path, contents(1)))
        place.keep(name)
        save = saver(path, contents(2))
        for _ in range(at + 1):
            next(save)
        save.close()
        left = path.read_bytes() if path.exists() else None
        place.end()
        newest = contents(2) if left == contents(2) else contents(1)
        assert path.read_bytes() == newest, at
        if left not in (None, newest):
            assert (path.parent / f"{name}.torn-1").read_bytes() == left


def test_cut_at_every_byte_it_comes_back_from_the_newest_whole_file(place: Place) -> None:
    first, second = zipped(1, 200), zipped(2, 200)
    place.begin()
    complete(in_place(place.path(), first))
    place.keep()
    for size in range(0, len(second), 5):
        place.path().write_bytes(second[:size])
        place.store.mark_running("boot")
        place.look()
        assert place.path().read_bytes() == first, size
    assert len(place.names()) == 4  # P10: the file and the last three torn ones
    place.path().write_bytes(second)
    place.look()
    assert place.path().read_bytes() == second


def killed_at(point: str, work: Callable[[], object]) -> bool:
    """Do it in a process that is killed at this point; False where it is never reached."""
    pid = os.fork()
    if pid == 0:
        failpoints.arm(f"{point}:kill")
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("point", POINTS)
def test_p7_crashing_in_a_look_and_looking_again_ends_in_the_same_files(
    tmp_path: Path, point: str
) -> None:
    """And of a crash in keeping, that the version before it is still there."""
    ends = []
    for crashes in (0, 1, 2):
        tree = tmp_path / str(crashes)
        tree.mkdir()
        place = Place(tree)
        place.begin()
        complete(in_place(place.path(), zipped(1)))
        place.keep()
        place.path("other.pt").write_bytes(zipped(7))  # to be kept by the look
        place.path().write_bytes(zipped(2)[:-9])
        for crash in range(crashes):
            assert killed_at(point, place.look) or crash > 0  # then it is past that point
        Store(place.store.folder, tree, 3).sweep()
        place.end()
        assert place.path().read_bytes() == zipped(1)
        assert {r.path for r in place.store.read()} == {"out/model.pt", "out/other.pt"}
        ends.append(place.names())
        leftovers = {path.name.split("-")[0] for path in place.store.files.iterdir()}
        assert leftovers <= {path.stem for path in place.store.records.iterdir()}
    assert ends[0] == ["model.pt", "model.pt.torn-1", "other.pt"]
    assert ends == [ends[0]] * 3


# --- what stays, what goes ----------------------------------------------------------------------


def test_p10_the_newest_three_of_each_family_are_kept(place: Place) -> None:
    place.begin()
    for number in range(1, 8):
        for name in ("last.pt", f"ckpt-{number:03}.pt"):
            complete(in_place(place.path(name), zipped(number)))
            place.keep(name)
    kept = [record.path for record in place.store.read()]
    assert sorted(kept) == [f"out/ckpt-00{n}.pt" for n in (5, 6, 7)] + ["out/last.pt"] * 3
    assert len(list(place.store.files.iterdir())) == 6


def test_of_many_old_files_only_the_newest_are_kept_and_none_twice(place: Place) -> None:
    for number in range(9):
        place.path(f"ckpt-{number}.pt").write_bytes(zipped(number))
        os.utime(place.path(f"ckpt-{number}.pt"), (number, number))
    place.begin()
    place.end()
    place.begin()
    assert [r.path for r in place.store.read()] == [f"out/ckpt-{n}.pt" for n in (6, 7, 8)]
    assert place.kinds() == [FileAdopted] * 3


def test_a_torn_file_without_a_version_is_put_aside_and_an_old_one_is_left(place: Place) -> None:
    place.path("old.pt").write_bytes(zipped(1)[:99])
    place.begin()
    place.path("ckpt-2.pt").write_bytes(zipped(2)[:99])
    place.end()
    assert place.names() == ["ckpt-2.pt.torn-1", "old.pt"]
    assert place.kinds() == [FileRejected]


def test_a_file_that_somebody_removed_while_nothing_ran_does_not_come_back(place: Place) -> None:
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    place.end()
    place.path().unlink()
    place.begin()
    assert place.names() == []
    # The attempt ends: what its script removes on its orderly way out is gone as well.
    complete(in_place(place.path(), zipped(2)))
    place.keep()
    place.path().unlink()
    place.end(orderly=True)
    assert place.names() == []


def test_a_version_that_a_power_cut_undid_is_put_back(place: Place) -> None:
    place.begin("boot 1")
    for number in (1, 2):
        complete(renamed(place.path(), zipped(number)))
        place.keep()
    complete(in_place(place.path(), zipped(1)))  # the rename was lost
    place.begin("boot 2")
    assert place.path().read_bytes() == zipped(2)


def test_an_older_whole_file_that_somebody_put_there_stays(place: Place) -> None:
    place.begin()
    for number in (1, 2):
        complete(in_place(place.path(), zipped(number)))
        place.keep()
    place.end()
    complete(in_place(place.path(), zipped(1)))
    place.begin()
    assert place.path().read_bytes() == zipped(1)
    assert FileRestored not in place.kinds()


def test_what_is_put_back_has_its_time_and_mode(place: Place) -> None:
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.path().chmod(0o640)
    os.utime(place.path(), ns=(1, 1_234_567_890_123_456_789))
    place.keep()
    place.path().write_bytes(b"")
    place.end()
    status = place.path().stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)


def test_a_format_that_shows_nothing_comes_back_where_it_shrank(place: Place) -> None:
    place.begin()
    place.path("model.bin").write_bytes(b"pickled" * 100)
    place.end(orderly=True)
    place.begin()
    place.path("model.bin").write_bytes(b"pickled" * 40)
    place.end()
    assert place.path("model.bin").read_bytes() == b"pickled" * 100
    place.begin()
    place.path("model.bin").write_bytes(b"longer." * 101)
    place.end()
    assert place.path("model.bin").read_bytes() == b"longer." * 101
    assert "size" in place.store.read()[-1].assurance


def test_forgotten_versions_are_not_put_back(place: Place) -> None:
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    place.store.forget()
    place.path().write_bytes(zipped(2)[:50])
    place.end()
    assert place.names() == ["model.pt.torn-1"]


# --- damage, links, other writers ---------------------------------------------------------------


def test_p8_a_damaged_version_is_passed_over_for_the_one_before_it(place: Place) -> None:
    place.begin()
    for number in (1, 2, 3):
        complete(in_place(place.path(), zipped(number)))
        place.keep()
    newest = place.store.bytes_of(place.store.read()[-1])
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    place.path().write_bytes(b"")
    place.end()
    assert place.path().read_bytes() == zipped(2)
    assert any("does not verify" in line for line in place.said)


def test_where_no_version_verifies_the_torn_file_is_left(place: Place) -> None:
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    place.store.bytes_of(place.store.read()[-1]).unlink()
    place.path().write_bytes(b"PK\3\4")
    place.end()
    assert place.names() == ["model.pt"] and place.path().read_bytes() == b"PK\3\4"
    assert any("no version of" in line for line in place.said)


def test_a_hard_link_is_taken_only_of_what_arrived_by_rename(place: Place) -> None:
    """A link to a file that is then emptied in place is emptied with it."""
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    complete(renamed(place.path(), zipped(2)))
    place.keep(arrived=True)
    hows = [record.how for record in place.store.read()]
    if "reflink" in hows:
        assert hows == ["reflink", "reflink"]
    else:
        assert hows == ["copy", "link"]
    # A saver that renames and then truncates costs that version, and gives no wrong one.
    place.path().write_bytes(zipped(3)[:-5])
    place.end()
    assert place.path().read_bytes() == zipped(1 if "link" in hows else 2)


def test_a_file_that_changes_while_it_is_kept_is_not_kept(place: Place) -> None:
    complete(in_place(place.path(), zipped(1)))
    stamp = Stamp.of(os.lstat(place.path()))
    place.path().write_bytes(zipped(2, 4000))
    with pytest.raises(Changed):
        place.store.adopt("out/model.pt", stamp, arrived=False, step=0)
    assert place.store.read() == [] and list(place.store.files.iterdir()) == []


def test_a_copy_of_two_versions_is_not_kept(place: Place) -> None:
    """Written over while it was copied: of a format that would not show it."""
    size = 3 << 20
    complete(in_place(place.path("model.safetensors"), tensors(1, size)))
    stamp = Stamp.of(os.lstat(place.path("model.safetensors")))
    place.store.breathe = lambda: place.path("model.safetensors").write_bytes(tensors(2, size))
    with pytest.raises(Changed):
        place.store.adopt("out/model.safetensors", stamp, arrived=False, step=0)
    assert place.store.read() == []


def test_the_kept_bytes_are_what_is_checked(place: Place) -> None:
    place.path().write_bytes(zipped(1)[:-1] + b"x")
    stamp = Stamp.of(os.lstat(place.path()))
    damaged = zipped(1).replace(b"3\n", b"4\n")
    place.path().write_bytes(damaged)
    stamp = Stamp.of(os.lstat(place.path()))
    with pytest.raises(NotKept) as refused:
        place.store.adopt("out/model.pt", stamp, arrived=False, step=0)
    assert refused.value.torn


def test_a_link_in_the_place_of_a_file_is_neither_read_nor_replaced(place: Place) -> None:
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    place.path().unlink()
    secret = place.tree / "secret"
    secret.write_bytes(b"PK\3\4torn")
    place.path().symlink_to(secret)
    place.end()
    assert place.path().is_symlink() and secret.read_bytes() == b"PK\3\4torn"


def test_a_late_keeper_takes_another_number_and_neither_loses(place: Place) -> None:
    complete(in_place(place.path("a.pt"), zipped(1)))
    complete(in_place(place.path("b.pt"), zipped(2)))
    late = Store(place.store.folder, place.tree, 3)
    taken = place.store.records / "00000001.json"
    place.keep("a.pt")
    assert taken.exists()
    late._last = lambda: 0  # type: ignore[method-assign] # what it saw before it slept
    late.adopt("out/b.pt", Stamp.of(os.lstat(place.path("b.pt"))), arrived=False, step=0)
    assert [(r.number, r.path) for r in place.store.read()] == [(1, "out/a.pt"), (2, "out/b.pt")]
    for record in place.store.read():
        assert place.store.bytes_of(record).exists()


def test_a_record_that_is_damaged_is_no_record(place: Place) -> None:
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    (place.store.records / "00000002.json").write_bytes(b"{")
    (place.store.records / "00000003.json").write_bytes(b'{"number": 3}')
    assert [record.number for record in place.store.read()] == [1]


def test_the_run_itself_is_never_looked_at(place: Place) -> None:
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    everything = [Pattern.parse("**/.*/**/*.pt", place.tree), Pattern.parse("**/*.pt", place.tree)]
    assert list(find(place.tree, everything, place.tree / ".walrecover")) == ["out/model.pt"]


# --- what fails once, and what a file system lacks ----------------------------------------------


def test_p7_what_could_not_be_put_back_is_put_back_by_the_next_look(place: Place) -> None:
    """As on a disk with room for a note of what lay there, and none for the file."""
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    place.path().write_bytes(zipped(2)[:-9])
    in_the_way = place.tree / "out" / ".model.pt.walrecover"
    in_the_way.mkdir()
    place.end()
    assert any("cannot be looked after" in line for line in place.said)
    in_the_way.rmdir()
    place.begin()
    assert place.path().read_bytes() == zipped(1)


def test_without_hard_links_a_torn_file_is_renamed_and_the_version_put_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT, some FUSE; or a file of another user where links to those are refused."""
    place.begin()
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    link = os.link

    def refuse(source: str | Path, target: str | Path, **options: Any) -> None:
        if Path(target).parent == place.tree / "out":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    place.path().write_bytes(zipped(2)[:-9])
    place.path("other.pt").write_bytes(zipped(3)[:-9])
    place.end()
    assert place.names() == ["model.pt", "model.pt.torn-1", "other.pt.torn-1"]
    assert place.path().read_bytes() == zipped(1)
    assert place.path("model.pt.torn-1").read_bytes() == zipped(2)[:-9]


def test_a_late_keeper_of_the_same_name_does_not_take_the_bytes_of_a_record(place: Place) -> None:
    complete(in_place(place.path(), zipped(1)))
    place.keep()
    late = Store(place.store.folder, place.tree, 3)
    late._last = lambda: 0  # type: ignore[method-assign] # what it saw before it slept
    complete(in_place(place.path(), zipped(2)))
    late.adopt("out/model.pt", Stamp.of(os.lstat(place.path())), arrived=False, step=0)
    first, second = place.store.read()
    assert place.store.bytes_of(first).read_bytes() == zipped(1)
    assert place.store.bytes_of(second).read_bytes() == zipped(2)


def test_a_folder_that_leads_outside_now_is_refused_before_anything_is_made(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    place.begin()
    deep = place.path("deep")
    deep.mkdir()
    (deep / "model.pt").write_bytes(zipped(1))
    keep(place.store, "out/deep/model.pt", Stamp.of(os.lstat(deep / "model.pt")), place.telling)
    shutil.rmtree(place.tree / "out")
    (place.tree / "out").symlink_to(elsewhere)
    place.end()
    assert any("leads outside" in line for line in place.said)
    assert list(elsewhere.iterdir()) == []
