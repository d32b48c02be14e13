"""What a rehearsal leaves to look at: `make demo`, and later `make page`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support import readmodels
from tests.support.readmodels import ended
from tests.support.waiting import wait_until
from walrecover.rehearse.page import leave

ROOT = Path(__file__).parents[2]
SMALL = "--epochs 1 --steps-per-epoch 40 --layers 1 --width 16"


def make(target: str, demo: Path, *more: str) -> subprocess.Popen[str]:
    """With this Python, whether or not the Makefile's own environment is up to date."""
    own = [f"BIN={Path(sys.executable).parent}", f"PY={sys.executable}", f"DEMO={demo}"]
    return subprocess.Popen(
        ["make", "-s", "-o", ".venv/.installed", target, *own, *more],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_leaves_a_page_and_make_page_serves_it_later(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    # Both pipes come to their end: what is left behind holds neither.
    out, err = make("demo", demo, "KILLS=1", f"DEMO_ARGS={SMALL}").communicate(timeout=400)
    assert out.startswith("identical after 40 steps"), err
    *_, page, kept = err.splitlines()
    assert kept == f"the runs are kept in {demo}"
    found = re.fullmatch(
        r"the page of the killed run: (http://127\.0\.0\.1:\d+/)runs/rehearsal \(for 30 minutes, "
        r"or until 'kill (\d+)'; later by 'walrecover-daemon serve (.+)'\)",
        page,
    )
    assert found is not None, err
    left = psutil.Process(int(found[2]))
    try:
        assert found[3] == str(demo / "killed")
        shows_the_kill(found[1])
        assert os.getsid(left.pid) == left.pid  # a Ctrl-C in this terminal is not its affair
    finally:
        left.terminate()
        wait_until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE)

    later = make("page", demo, f"ARGS={demo / 'killed'} --port 0")
    try:
        shows_the_kill(readmodels.address(later))
    finally:
        (daemon,) = psutil.Process(later.pid).children()
        daemon.terminate()
        later.communicate(timeout=60)


def shows_the_kill(address: str) -> None:
    with httpx.Client(base_url=address, timeout=30) as page:
        wait_until(lambda: page.get("/readyz").status_code == 200)
        text = page.get("/runs/rehearsal").text
    assert "killed by SIGKILL" in text
    assert "finished" in text


def test_make_page_says_what_is_missing_before_there_was_a_demo(tmp_path: Path) -> None:
    _, said = make("page", tmp_path / "none").communicate(timeout=60)
    assert f"{tmp_path / 'none' / 'killed'} is not there: give a .walrecover directory" in said


def test_a_page_ends_by_itself_after_its_time(tmp_path: Path) -> None:
    process = readmodels.daemon("serve", tmp_path, "--for", "0.5s")
    assert readmodels.address(process)
    assert ended(process) == ""
    assert process.returncode == 0


@pytest.mark.parametrize("time", ["30", "m", "-1s", "1d", "0x1s", "\u0661s"])
def test_a_time_without_its_unit_is_bad_input(tmp_path: Path, time: str) -> None:
    code, _, said = readmodels.run_daemon("serve", tmp_path, f"--for={time}")
    assert code == 2
    assert "give a number and its unit, such as 90s, 30m or 8h" in said


def test_a_rehearsal_whose_daemon_cannot_start_says_so(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert leave(none).startswith(f"no page: walrecover-daemon: {none} is not there: give a")
