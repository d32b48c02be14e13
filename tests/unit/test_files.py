"""Durable files: what is written once, made durable once, and read without being led astray."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from walrecover import files
from walrecover.errors import Corrupt, StorageFailed
from walrecover.files import (
    SyncFailed,
    create_if_absent,
    make_directory,
    open_regular,
    read_regular,
    replace_file,
    storage,
    write_durably,
)


class Syncs:
    """Every fsync, by the path that it was for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        real = os.fsync

        def fsync(fd: int) -> None:
            self.paths.append(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


def deny_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)


# --- folders ------------------------------------------------------------------------------------


def test_every_new_folder_is_durable_in_its_parent(tmp_path: Path, syncs: Syncs) -> None:
    make_directory(tmp_path / "a" / "b" / "c")
    assert syncs.paths[-3:] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_somebody_left_before_it_was_durable_becomes_so(
    tmp_path: Path, syncs: Syncs
) -> None:
    """Its maker may have died between mkdir and fsync; what is written into it now must stay."""
    (tmp_path / "left").mkdir()
    make_directory(tmp_path / "left")
    assert str(tmp_path) in syncs.paths
    syncs.paths.clear()
    make_directory(tmp_path / "left" / "inner")
    assert syncs.paths == [str(tmp_path), str(tmp_path / "left")]


def test_a_parent_that_may_not_be_listed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    real = files.sync_directory

    def sync(path: Path) -> None:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path)

    monkeypatch.setattr(files, "sync_directory", sync)
    make_directory(tmp_path / "home" / "run")
    assert (tmp_path / "home" / "run").is_dir()


def test_a_folder_made_by_somebody_else_meanwhile_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        real(path)
        real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b""), lambda p: p.symlink_to("nowhere")])
def test_a_file_in_the_place_of_a_folder_is_an_error(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "taken")
    with pytest.raises(OSError):
        make_directory(tmp_path / "taken")
    with pytest.raises(StorageFailed), storage("cannot make it"):
        make_directory(tmp_path / "taken" / "inner")


# --- writing ------------------------------------------------------------------------------------


def test_a_file_is_written_once(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    write_durably(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_written_file_is_synced(tmp_path: Path, syncs: Syncs) -> None:
    write_durably(tmp_path / "file", b"data")
    assert syncs.paths == [str(tmp_path / "file")]


def test_a_failed_fsync_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny_fsync(monkeypatch)
    for write in (
        lambda: write_durably(tmp_path / "file", b"data"),
        lambda: files.sync_file(tmp_path / "file"),
        lambda: files.sync_directory(tmp_path),
    ):
        with pytest.raises(SyncFailed) as raised:
            write()
        assert raised.value.errno == errno.EIO and raised.value.filename.startswith(str(tmp_path))


def test_create_if_absent(tmp_path: Path, syncs: Syncs) -> None:
    assert create_if_absent(tmp_path / "file", b"first")
    assert not create_if_absent(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]
    assert syncs.paths[1] == str(tmp_path)  # the bytes, then the name


def test_the_bytes_are_durable_before_the_name_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncs: Syncs
) -> None:
    real = os.link

    def link(source: Path, target: Path, **options: bool) -> None:
        assert syncs.paths == [str(source)]
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    assert create_if_absent(tmp_path / "file", b"data")


def test_create_if_absent_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny_fsync(monkeypatch)
    with pytest.raises(SyncFailed):
        create_if_absent(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == []


def test_create_if_absent_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    assert not create_if_absent(tmp_path / "file", b"data")
    assert not (tmp_path / "elsewhere").exists()


def test_replace_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "cache", b"first")
    replace_file(tmp_path / "cache", b"second")
    assert (tmp_path / "cache").read_bytes() == b"second"

    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError):
        replace_file(tmp_path / "cache", b"third")
    assert os.listdir(tmp_path) == ["cache"]


def test_storage_says_what_was_written_and_where() -> None:
    said = r"cannot write it: No space.* \(/a/file\)"
    with pytest.raises(StorageFailed, match=said), storage("cannot write it"):
        raise OSError(errno.ENOSPC, "No space left on device", "/a/file")
    with pytest.raises(FileExistsError), storage("cannot write it"):
        raise FileExistsError


# --- reading ------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "file").write_bytes(b"data")
    (root / "link").symlink_to("inner/file")
    (root / "linked").symlink_to("inner")
    (root / "out").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    return root


def test_a_regular_file_is_read(root: Path) -> None:
    assert read_regular(root, "inner/file", 4) == b"data"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "../secret",
        "inner/../../secret",
        "inner//file",
        "./inner/file",
        "inner/.",
        "inner/file/",
        "inner/file/more",
        "inner\0",
        "link",
        "linked/file",
        "out/secret",
        "loop",
        "fifo",
        "inner",
        "x" * 300,
    ],
)
def test_nothing_else_is(root: Path, name: str) -> None:
    with pytest.raises(Corrupt):
        read_regular(root, name, 100)


def test_a_socket_is_no_regular_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(Corrupt, match="is not a regular file"):
            open_regular(root, "socket")


def test_a_missing_file_is_missing(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular(root, "inner/none", 100)
    with pytest.raises(FileNotFoundError):
        read_regular(root, "none/file", 100)


def test_a_file_may_not_be_larger_than_it_may_be(root: Path) -> None:
    with pytest.raises(Corrupt, match="larger than the 3 bytes"):
        read_regular(root, "inner/file", 3)


def test_no_descriptor_is_left_open(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for name in ("link", "linked/file", "fifo", "inner", "inner/none", "inner/file"):
        with suppress(Corrupt, FileNotFoundError):
            read_regular(root, name, 3)
    assert os.listdir("/proc/self/fd") == before


def test_leftovers_of_dead_writers_go_once_they_are_old(tmp_path: Path) -> None:
    old, young, own = (
        tmp_path / n
        for n in (
            ".00000002.json.0011223344556677",
            ".00000003.json.8899aabbccddeeff",
            "00000001.json",
        )
    )
    for path in (old, young, own):
        path.write_text("x")
    (tmp_path / ".rank-0.00112233").mkdir()
    os.utime(old, (1, 1))
    os.utime(own, (1, 1))
    os.utime(tmp_path / ".rank-0.00112233", (1, 1))
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, own.name]
