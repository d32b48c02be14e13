"""`walrecover doctor` on faults of storage, planted with real mounts and other users (Show 6): run
by `make test-system`, needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import Answer
from tests.end_to_end.test_doctor import doctor, run, train, tree
from walrecover.rundir import RunDir

pytestmark = pytest.mark.system

UID = 54321
"""Of nobody here."""


class Mounts:
    """What a test has mounted; unmounted in reverse, whatever happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mounted: list[Path] = []

    def mount(self, *words: str, name: str = "mounted") -> Path:
        point = self._folder / name
        point.mkdir(exist_ok=True)
        subprocess.run(["mount", *words, str(point)], check=True, timeout=60)
        self._mounted.append(point)
        return point

    def tmpfs(self, options: str) -> Path:
        return self.mount("-t", "tmpfs", "-o", options, "tmpfs")

    def ext4(self, megabytes: int, *format: str, options: str = "loop") -> Path:
        image = self._folder / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        make = ["mkfs.ext4", "-q", "-F", *format, str(image)]
        subprocess.run(make, check=True, timeout=60)
        return self.mount("-o", options, str(image))

    def close(self) -> None:
        for point in reversed(self._mounted):
            subprocess.run(["umount", "--lazy", str(point)], check=False, timeout=60)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    with contextlib.closing(Mounts(tmp_path)) as found:
        yield found


def fill(folder: Path) -> None:
    """To the last byte that root may have."""
    fd = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
    finally:
        os.close(fd)


def use_up_inodes(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (folder / f"small-{number}").touch()


AS_ANOTHER = """
import contextlib, grp, json, os, pwd, sys
from walrecover import cli
uid, groups, first, second = json.loads(sys.argv[1])
def call(arguments):
    try:
        cli.main(arguments)
    except SystemExit as end:
        return end.code
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    call(first)
os.setgroups(groups)
os.setgid(uid)
os.setuid(uid)
os.chdir("/")
sys.exit(call(second))
"""
"""The interpreter may lie in a home that is closed to others: root imports what is needed first."""


def as_another(
    root: Path, *arguments: str, first: tuple[str, ...], groups: tuple[int, ...] = ()
) -> Answer:
    """The command line as another user, who has neither root's rights nor root's group. `first`:
    what root does in the same process before that."""
    told = json.dumps([UID, groups, first, arguments])
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, told],
        capture_output=True,
        text=True,
        env={**os.environ, "WALRECOVER_DIR": str(root), "COLUMNS": "200", "HOME": "/"},
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def opened(folder: Path) -> None:
    """pytest's own folders let nobody else in."""
    for path in (folder, *folder.parents):
        if path == Path("/tmp") or path == Path("/"):
            break
        path.chmod(0o755)


def test_a_tmpfs_is_a_failure_of_the_doctor_and_a_line_before_a_run(mounts: Mounts) -> None:
    root = mounts.tmpfs("size=64m") / ".walrecover"
    code, found = doctor(root)
    assert (code, found["volatile"]["level"]) == (1, "failure")
    assert "tmpfs" in found["volatile"]["found"]
    answer = run(root, "--name", "x")
    assert (answer.code, answer.out) == (0, "ran\n")
    assert answer.err.count("warning:") == 1
    assert "lies in memory: tmpfs" in answer.err
    assert "gone after a reboot" in answer.err


def test_a_full_tmpfs_is_called_full(mounts: Mounts) -> None:
    folder = mounts.tmpfs("size=1m")
    fill(folder)
    before = tree(folder)
    code, found = doctor(folder / ".walrecover")
    assert (code, found["full"]["level"]) == (1, "failure")
    assert "No space left" in found["full"]["found"]
    assert tree(folder) == before


def test_a_full_disk_stops_a_run_with_the_remedy(mounts: Mounts) -> None:
    folder = mounts.ext4(8)
    fill(folder)
    before = tree(folder)
    code, found = doctor(folder / ".walrecover")
    assert (code, found["full"]["level"]) == (1, "failure")
    answer = run(folder / ".walrecover")
    assert (answer.code, answer.out) == (2, "")
    assert "free space" in answer.err
    assert tree(folder) == before


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_no_inodes_is_not_taken_for_no_space(mounts: Mounts, kind: str) -> None:
    if kind == "ext4":
        folder = mounts.ext4(8, "-N", "32")
    else:
        folder = mounts.tmpfs("size=8m,nr_inodes=20")
    code, found = doctor(folder / ".walrecover")
    assert found["inodes"]["level"] == "warning", found
    use_up_inodes(folder)
    before = tree(folder)
    code, found = doctor(folder / ".walrecover")
    assert (code, found["inodes"]["level"]) == (1, "failure")
    assert "full" not in found
    assert found["room"]["level"] in ("ok", "warning")
    answer = run(folder / ".walrecover")
    assert (answer.code, answer.out) == (2, "")
    assert "delete many small files" in answer.err
    assert tree(folder) == before


def test_a_read_only_bind_is_called_read_only(mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    folder = mounts.mount("--bind", str(tmp_path / "source"))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    code, found = doctor(folder / ".walrecover")
    assert (code, found["read-only"]["level"]) == (1, "failure")
    answer = run(folder / ".walrecover")
    assert (answer.code, answer.out) == (2, "")
    assert "remount it for writing" in answer.err


def test_an_empty_directory_that_was_bound_is_said_until_a_run_lies_there(
    mounts: Mounts, tmp_path: Path
) -> None:
    (tmp_path / "dta").mkdir(mode=0o755)  # as docker creates what was meant to be /…/data
    folder = mounts.mount("--bind", str(tmp_path / "dta"))
    root = folder / ".walrecover"
    code, found = doctor(root)
    assert (code, found["bind"]["level"]) == (0, "warning")
    assert f"{folder} is a bind of " in found["bind"]["found"]
    assert "/dta of " in found["bind"]["found"]
    answer = run(root, "--name", "x")
    assert (answer.code, answer.out) == (0, "ran\n")
    assert "which is empty and belongs to root" in answer.err
    again = run(root, "--name", "x")
    assert (again.code, "bind" in again.err) == (0, False)
    assert doctor(root)[1]["bind"]["level"] == "ok"


def test_a_bound_directory_with_something_in_it_is_as_it_should_be(
    mounts: Mounts, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.py").touch()
    folder = mounts.mount("--bind", str(tmp_path / "data"))
    assert doctor(folder / ".walrecover")[1]["bind"]["level"] == "ok"


def test_a_run_of_root_is_refused_to_another_user_with_its_owner_named(tmp_path: Path) -> None:
    opened(tmp_path)
    found = RunDir(tmp_path / ".walrecover", "train")
    train(found)
    before = tree(tmp_path)
    ask = ("doctor", "--json", "--name", "train")
    answer = as_another(found.root, *ask, first=ask)
    assert "findings" in answer.json, answer
    wrong = [f for f in answer.json["findings"] if f["level"] == "failure"]
    assert (answer.code, [f["check"] for f in wrong]) == (1, ["permission"])
    assert "which belongs to root (mode 0700)" in wrong[0]["found"]
    assert "chown" in wrong[0]["remedy"]
    # Root's own first call ends with 127; it imports all that a run needs to look.
    absent = ("run", "--name", "train", "--", "no-such-command")
    there = (*absent[:-1], "/bin/echo", "ran")
    stopped = as_another(found.root, *there, first=absent)
    assert (stopped.code, stopped.out) == (2, "")
    assert "which belongs to root" in stopped.err
    assert tree(tmp_path) == before


def test_root_in_the_run_of_another_user_is_told_whose_it_is(tmp_path: Path) -> None:
    found = RunDir(tmp_path / ".walrecover", "train")
    train(found)
    for path in (found.root, *found.root.rglob("*")):
        os.chown(path, UID, UID)
    code, findings = doctor(found.root, "--name", "train")
    assert (code, findings["owner"]["level"]) == (0, "warning")
    assert f"belongs to user {UID}, and you are root" in findings["owner"]["found"]
    answer = run(found.root, "--name", "train")
    assert answer.code == 0
    assert "the owner can no longer resume" in answer.err


def test_the_remedy_for_the_group_lets_a_second_user_restore(tmp_path: Path) -> None:
    opened(tmp_path)
    group = 54322
    lab = tmp_path / "lab"
    lab.mkdir()
    os.chown(lab, 0, group)
    lab.chmod(0o2775)
    found = RunDir(lab / ".walrecover", "train")
    train(found)
    assert doctor(found.root, "--name", "train")[1]["group"]["level"] == "warning"
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, UID, UID)
    restore = ("replay", "train", "--into", str(home / "out"))
    first = (*restore[:-1], str(tmp_path / "root's"))
    refused = as_another(found.root, *restore, first=first, groups=(group,))
    assert refused.code != 0, refused
    shutil.rmtree(tmp_path / "root's")
    subprocess.run(["chmod", "-R", "g+rX", str(found.root)], check=True)
    assert doctor(found.root, "--name", "train")[1]["group"]["level"] == "ok"
    restored = as_another(found.root, *restore, first=first, groups=(group,))
    assert restored.code == 0, restored
    assert (home / "out" / "state.safetensors").exists()


def test_an_overlay_and_its_options_are_read(mounts: Mounts, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,volatile"
    folder = mounts.mount("-t", "overlay", "overlay", "-o", layers)
    _, found = doctor(folder / ".walrecover")
    assert found["layer"]["level"] == "note"
    assert f"{tmp_path}/upper" in found["layer"]["found"]
    assert found["unsafe-mount"]["level"] == "warning"
