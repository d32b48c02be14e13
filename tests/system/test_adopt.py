"""Adopted files on a full disk, with a real mount (P9): run by `make test-system`, needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import Answer, walrecover
from tests.support.savers import zipped

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]

SAVE = """
import sys
from tests.support.savers import complete, in_place, zipped
from pathlib import Path
for version in range(int(sys.argv[2])):
    complete(in_place(Path("model.pt"), zipped(version, int(sys.argv[1]))))
print("saved")
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, on which everything lies: the script's files, and what is kept."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def adopt(disk: Path, *command: str) -> Answer:
    return walrecover(
        disk / ".walrecover", "run", "--name", "run", "--no-preflight", "--max-restarts", "0",
        "--adopt", "*.pt", "--", sys.executable, *command, PYTHONPATH=str(ROOT),
    )  # fmt: skip


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def test_p9_a_version_is_not_kept_where_the_scripts_next_file_would_not_fit(disk: Path) -> None:
    done = adopt(disk, "-c", SAVE, "1500000", "5")
    assert "saved" in done.out and done.code == 0, done
    assert (disk / "model.pt").read_bytes() == zipped(4, 1500000)
    assert "only" in done.err and "are free" in done.err
    assert list((disk / ".walrecover/runs/run/adopted/files").iterdir()) == []


def test_p9_a_full_disk_harms_no_file_and_the_version_comes_back_once_there_is_room(
    disk: Path,
) -> None:
    assert adopt(disk, "-c", SAVE, "100000", "1").code == 0
    torn = zipped(9, 100000)[:-30]
    (disk / "model.pt").write_bytes(torn)
    fill(disk)
    failed = adopt(disk, "-c", "print('ran')")
    assert failed.code != 0 and "No space left" in failed.err, failed
    assert (disk / "model.pt").read_bytes() == torn
    os.unlink(disk / "filler")
    assert "ran" in adopt(disk, "-c", "print('ran')").out
    assert (disk / "model.pt").read_bytes() == zipped(0, 100000)
    assert (disk / "model.pt.torn-1").read_bytes() == torn
