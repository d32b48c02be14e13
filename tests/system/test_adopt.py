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
from tests.support.stand_in import write_stand_in
from walrecover.rundir import RunDir
from walrecover.supervisor.keeper import HOOK

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


COUNTED = """
from torch.optim.optimizer import Optimizer
optimizer = Optimizer()
optimizer.step(); optimizer.step()
print("trained")
"""

BEAT = """
import sys
from pathlib import Path
from walrecover.beats import Beat
try:
    Beat(Path(sys.argv[1]), 0)
except OSError as error:
    print(error.strerror)
"""


def test_p9_no_process_is_ended_by_its_page_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """Whoever writes into a hole for which there is no room gets SIGBUS: neither a script that is
    adopted, nor one that attaches."""
    meeting = RunDir(disk / ".walrecover", "run").meeting(1, "ab12")
    meeting.mkdir(parents=True)
    write_stand_in(tmp_path / "site")
    told = {
        "PYTHONPATH": os.pathsep.join([str(HOOK), str(tmp_path / "site"), str(ROOT)]),
        "WALRECOVER_DIR": str(disk / ".walrecover"),
        "WALRECOVER_RUN": "run",
        "WALRECOVER_ATTEMPT": "1-ab12",
    }

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", *words],
            env=os.environ | told,
            capture_output=True,
            text=True,
            timeout=120,
        )

    fill(disk)
    adopted = python(COUNTED)
    assert (adopted.returncode, adopted.stdout) == (0, "trained\n"), adopted
    assert "steps are not counted" in adopted.stderr and "No space left" in adopted.stderr
    attached = python(BEAT, str(meeting))
    assert (attached.returncode, attached.stdout) == (0, "No space left on device\n"), attached
