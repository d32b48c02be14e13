"""Whole runs on a GPU: killed, restored, proven to be the same; and what a device dies of."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.campaigns.proof import proofs
from walrecover import events
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir

SCRIPT = Path(__file__).parent / "scripts" / "trained.py"
ROOT = Path(__file__).parents[2]


def walrecover(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, "-m", "walrecover.cli", *words]
    env = {**os.environ, "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return subprocess.run(line, cwd=folder, env=env, text=True, capture_output=True, timeout=400)


class Killed(NamedTuple):
    """A rehearsal: its exit code, what it says, and its killed run."""

    code: int
    said: dict[str, Any]
    run: RunDir

    @property
    def inexact(self) -> list[str]:
        """Resumes that were proven less than exact, or not at all."""
        found = proofs(self.run)
        hows = [how for how in found["resumes"] if not how.startswith("exact, ")]
        return [*hows, *found["not_proven"]]


def killed(folder: Path, kills: int, *words: str) -> Killed:
    kept = folder / "kept"
    done = walrecover(
        folder, "rehearse", "--json", "--keep", str(kept), "--kills", str(kills), "--seed", "1",
        *words, "--", sys.executable, str(SCRIPT),
    )  # fmt: skip
    assert done.stdout, done.stderr
    return Killed(done.returncode, json.loads(done.stdout), RunDir(kept / "killed", "rehearsal"))


def test_a_killed_run_ends_with_the_same_bits_and_each_resume_is_proven(tmp_path: Path) -> None:
    rehearsed = killed(tmp_path, 4)
    assert (rehearsed.code, rehearsed.said.get("identical")) == (0, True), rehearsed.said
    assert rehearsed.inexact == []


def test_a_step_kept_in_memory_is_restored_from_the_arena(tmp_path: Path) -> None:
    rehearsed = killed(tmp_path, 4, "--memory-every", "1step")
    assert (rehearsed.code, rehearsed.said.get("identical")) == (0, True), rehearsed.said
    assert rehearsed.inexact == []
    found = read_events(rehearsed.run, "rank-0")
    arena = [event.arena for _, event in found if isinstance(event, events.Resumed)]
    assert sum(arena) > 0, "no resume took anything from an arena"


def story(folder: Path) -> list[dict[str, Any]]:
    shown = walrecover(folder, "show", "--json")
    assert shown.returncode == 0, shown.stderr
    attempts: list[dict[str, Any]] = json.loads(shown.stdout)["attempts"]
    return attempts


def weights(output: str) -> str:
    found = re.search(r"weights (\w{64})", output)
    assert found, output
    return found[1]


def trained(
    folder: Path, *words: str, standby: str = "", every: str = "10steps"
) -> subprocess.CompletedProcess[str]:
    options = ("--backoff", "0", "--max-restarts", "4", "--every", every)
    more = ("--standby", standby) if standby else ()
    line = (sys.executable, str(SCRIPT), "--epochs", "1", *words)
    return walrecover(folder, "run", *options, *more, "--", *line)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights(trained(tmp_path_factory.mktemp("undisturbed")).stdout)


def test_a_device_short_of_memory_loses_no_step(tmp_path: Path, undisturbed: str) -> None:
    done = trained(tmp_path, "--dies", "memory", "--at", "25")
    assert done.returncode == 0, done.stderr
    assert weights(done.stdout) == undisturbed
    first, second = story(tmp_path)
    assert first["cause"] == "out_of_memory", first
    assert "step 25 is saved on the way out" in done.stderr
    assert second["recovery_point"] == 25


def test_a_parked_standby_with_its_model_on_the_device_goes_on(
    tmp_path: Path, undisturbed: str
) -> None:
    done = trained(tmp_path, "--dies", "kill", "--at", "30", standby="parked")
    assert done.returncode == 0, done.stderr
    assert weights(done.stdout) == undisturbed
    _, second = story(tmp_path)
    assert second["recovery_point"] == 30
    assert "resume verified" in done.stderr


def test_no_snapshot_is_made_of_a_loss_that_has_gone_bad_on_the_device(tmp_path: Path) -> None:
    """Where the policy goes back: the loss is waited for."""
    (tmp_path / "walrecover.yaml").write_text("causes: {numeric: {action: rewind}}")
    done = trained(tmp_path, "--dies", "nan", "--at", "11", every="3steps")
    assert done.returncode == 0, done.stderr
    first, second = story(tmp_path)
    assert (first["cause"], first["decision"]) == ("numeric", "rewind"), first
    assert "BadLoss: loss is nan at step 12" in first["evidence"]
    assert (second["recovery_point"], second["rejected"]) == (9, [])


def test_a_device_that_fails_an_assertion_leaves_the_last_commit_and_ends_the_run(
    tmp_path: Path,
) -> None:
    """Nothing of its memory can be read any more, and nobody waits for it. (torch itself aborts at
    the interpreter's end, where a frame of the traceback holds pinned memory.)"""
    done = trained(tmp_path, "--dies", "assert", "--at", "25")
    attempts = story(tmp_path)
    assert done.returncode in (1, 128 + signal.SIGABRT), done.stderr
    assert "Exception ignored" not in done.stderr
    assert {a["cause"] for a in attempts} == {"code"}, attempts
    assert "device-side assert" in attempts[0]["evidence"]
    assert attempts[1]["recovery_point"] >= 20
    assert attempts[-1]["decision"] == "stop"
    assert "a permanent error" in attempts[-1]["reason"]
    reason = "step 25 is not saved on the way out: CUDA error: device-side assert triggered; "
    assert reason + "the last commit, step" in done.stderr
