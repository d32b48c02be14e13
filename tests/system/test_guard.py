"""The daemon on guard where it may only read, and as its unit confines it: needs root, systemd."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_daemon_guard import daemon, guarded, told, trained, until
from tests.support.protocol import candidates, damage, entries_of
from tests.support.webhooks import Receiver, guard_file

pytestmark = pytest.mark.system

UNIT = Path(__file__).parents[2] / "daemon" / "systemd" / "walrecover-daemon.service"
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory of runs, one with a damaged snapshot, on a file system that may only be read."""
    source, place = tmp_path / "source", tmp_path / "mounted"
    run = trained(source / ".walrecover", saves=5)
    damage(run, candidates(run)[0])
    place.mkdir()
    subprocess.run(["mount", "--bind", source, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    yield place / ".walrecover"
    subprocess.run(["umount", place], check=True)


def test_where_it_may_only_read_the_guard_says_what_it_may_not_and_goes_on(
    read_only: Path, tmp_path: Path
) -> None:
    run = trained(tmp_path / "other" / ".walrecover", "other", saves=5)
    path = tmp_path / "read-model.db"
    text = f"retention: [{{every: 1s, keep_last: 2}}]\narchive: {{to: {tmp_path / 'vault'}}}\n"
    with Receiver() as hook:
        file = guard_file(tmp_path, hook.url, text)
        with daemon(read_only, file, run.root, "--read-model", path) as it:
            until(lambda: told(path) == {"rotten": "delivered"})
            until(lambda: len(candidates(run)) == 2)
            done = until(lambda: rows if len(rows := guarded(path, "upkeep")) == 4 else [])
            assert it.is_ready()
    problems = {(row["run"], row["what"]): row["problem"] for row in done}
    assert "Read-only file system" in problems["one", "archive"]
    assert problems["other", "archive"] == problems["other", "retention"] == ""
    assert f"{read_only} may not be written: what was read back is not remembered" in it.said
    assert "Traceback" not in it.said
    assert it.said.count("archive of one: ") == 1
    assert len(entries_of(run)) == 7  # the attempt, 5 commits, the retirement


# --- systemd --------------------------------------------------------------------------------------


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    assert found, "systemd-analyze is missing: install systemd"
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the command of this environment."""
    command = Path(sys.executable).with_name("walrecover-daemon")
    text = UNIT.read_text().replace("/opt/walrecover/bin/walrecover-daemon", str(command))
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(analyze: str, unit: Path) -> None:
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60)
    assert "WatchdogSecs" in done.stderr


def test_the_units_exposure_is_what_the_specs_say(analyze: str, unit: Path) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", unit],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    match = re.search(r"exposure level for \S+: ([\d.]+) ", done.stdout)
    assert match, done
    spec = (Path(__file__).parents[2] / "specs" / "22-guarding.md").read_text()
    stated = re.search(r"an exposure of ([\d.]+) of 10", spec)
    assert stated and float(match[1]) <= float(stated[1])


def test_it_works_where_no_memory_becomes_executable(tmp_path: Path) -> None:
    """As MemoryDenyWriteExecute= has it."""
    root = tmp_path / ".walrecover"
    run = trained(root)
    libc = ctypes.CDLL(None, use_errno=True)

    def confined() -> None:
        if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
            os._exit(99)

    text = f"archive: {{to: {tmp_path / 'vault'}}}\n"
    path = root / "daemon" / "read-model.db"
    with daemon(root, guard_file(tmp_path, text=text), preexec_fn=confined) as it:
        until(lambda: len(guarded(path, "readings")) == 3)
        until(lambda: [row["amount"] for row in guarded(path, "upkeep")] == [4])
        assert run.name in it.get("")
