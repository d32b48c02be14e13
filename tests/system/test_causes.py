"""Causes that take root to bring about: the kernel's OOM killer in a cgroup, a full file system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_causes import run_logged, story
from walrecover.causes import classify
from walrecover.rundir import RunDir
from walrecover.supervisor.child import Ending
from walrecover.supervisor.evidence import Before

pytestmark = pytest.mark.system

HOG = "hoard = []\nwhile True: hoard.append(bytearray(b'x' * (1 << 20)))"


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """A cgroup of 128 MiB (v1, or v2 with its memory controller)."""
    root = Path("/sys/fs/cgroup/memory")
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    if not root.is_dir():
        root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.swap.max")
    folder = root / f"walrecover-causes-{tmp_path.name}"
    folder.mkdir()
    (folder / names[0]).write_text(str(128 << 20))
    if (folder / names[1]).exists():
        (folder / names[1]).write_text(str(128 << 20) if "limit" in names[1] else "0")
    yield folder
    folder.rmdir()


def inside(cgroup: Path, *command: str) -> list[str]:
    """The command, begun in the cgroup."""
    return ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh", *command]


def test_the_oom_killer_in_a_cgroup_is_out_of_memory(tmp_path: Path, cgroup: Path) -> None:
    # Supervisor and command in one cgroup, as in a container: it is the largest that is killed.
    line = [sys.executable, "-m", "walrecover.cli", "run", "--max-restarts", "1", "--backoff", "0"]
    done = subprocess.run(
        inside(cgroup, *line, "--", sys.executable, "-c", HOG),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 128 + 9, done.stderr
    ends = story(tmp_path)
    assert [end["cause"] for end in ends] == ["out_of_memory"] * 2, done.stderr
    assert [end["decision"] for end in ends] == ["restart", "stop"]
    assert (
        "the kernel's OOM killer ended 1 process in its cgroup (limit 128 MiB)"
        in (ends[0]["evidence"])
    )
    assert ends[0]["fingerprint"] == ends[1]["fingerprint"] == "out_of_memory:killed"


def test_a_command_in_a_cgroup_of_its_own_is_followed_there(tmp_path: Path, cgroup: Path) -> None:
    before = Before.note({})
    hog = f"import sys; print('up', flush=True); sys.stdin.readline()\n{HOG}"
    with subprocess.Popen(
        inside(cgroup, sys.executable, "-c", hog),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "up\n"
        followed = before.follow(process.pid)
        assert followed.cgroup == cgroup
        process.stdin.write("\n")
        process.stdin.flush()
        ended = None
        while ended is None:  # looked at while it dies, too: freeing its memory takes a while
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            assert followed.follow(process.pid) == followed
        assert process.wait(60) == -9
    run = RunDir(tmp_path, "run")
    found = followed.look(
        Ending(signal=9), [], run=run, started=True, forced=None, asked=None, peak=0
    )
    assert (found.memory.kills, found.memory.limit) == (1, 128 << 20)
    assert classify(found).cause == "out_of_memory"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("size=64k", "open('mnt/model.pt', 'wb').write(bytes(1 << 20))", "No space left on device"),
        ("ro", "open('mnt/model.pt', 'wb')", "Read-only file system"),
    ],
)
def test_a_file_system_that_refuses_is_storage(
    tmp_path: Path, options: str, code: str, says: str
) -> None:
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path / "mnt"], check=True)
    try:
        ended, said = run_logged(tmp_path, code, "--max-restarts", "0")
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
    (end,) = story(tmp_path)
    assert (ended, end["cause"], end["decision"]) == (1, "storage", "stop"), said
    assert says in end["evidence"]
