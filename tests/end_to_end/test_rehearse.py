"""`walrecover rehearse` on scripts that are right and on scripts with a planted fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "rehearsed.py"

pytestmark = pytest.mark.slow


class Rehearsed(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def start(folder: Path, *options: str, fault: str = "") -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "walrecover.cli", "rehearse", "--seed", "7", *options),
            *("--", sys.executable, str(SCRIPT), fault),
        ],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rehearse(folder: Path, *options: str, fault: str = "") -> Rehearsed:
    process = start(folder, *options, fault=fault)
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in out, out
    assert "Traceback" not in err.split("\n  | ")[0], err
    return Rehearsed(process.returncode, out, err)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_script_that_attaches_all_of_its_state_is_identical(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "--kills", "3", "--determinism")
    assert done.code == 0, done.out + done.err
    assert "deterministic by itself: 60 steps twice, the same bits (blake3:" in done.err
    assert done.out.startswith("identical after 60 steps: final weights blake3:")
    flows = [line for line in done.err.splitlines() if line.startswith("  → ")]
    kills = [line for line in done.err.splitlines() if line.startswith("kill ")]
    assert [line.split(":")[0] for line in kills] == ["kill 1/3", "kill 2/3", "kill 3/3"]
    assert all("training again after" in line for line in flows), done.err
    assert len(flows) == 3
    assert any("in a snapshot" in line for line in kills)
    assert "the second overwrote the first: trained.txt" in done.err
    assert names(tmp_path) == ["trained.txt"]


def test_a_script_that_is_not_deterministic_differs_from_its_first_such_step(
    tmp_path: Path,
) -> None:
    done = rehearse(tmp_path, "--kills", "1", "--json", fault="random")
    assert done.code == 1
    assert done.json["version"] == 1
    assert done.json["identical"] is False
    assert [kill["landed"] for kill in done.json["kills"]] == [True]
    first = done.json["first_difference"]
    assert (first["step"], first["what"]) == (3, "loss")
    assert float(first["undisturbed"]) != float(first["killed"])
    assert done.json["files"] == ["trained.txt"]
    (kept,) = tmp_path.glob(".walrecover-rehearsal-*")
    assert f"what the command printed is kept in {kept}" in done.err
    assert names(kept) == [".gitignore", "calm.log", "killed.log"]


def test_a_script_that_is_not_deterministic_is_told_so_before_anything_is_killed(
    tmp_path: Path,
) -> None:
    done = rehearse(tmp_path, "--determinism", "--keep", "kept", fault="random")
    assert done.code == 1
    first, *causes = done.out.splitlines()
    assert first.startswith("not deterministic by itself, without any crash: different from step 3")
    assert ": loss is " in first
    assert all(line.startswith("  a usual cause: ") for line in causes)
    assert "nobody seeds" in done.out
    assert "kill 1" not in done.err
    assert names(tmp_path / "kept") == ["calm", "calm.log", "twin", "twin.log"]


def test_a_scheduler_that_was_not_attached_shows_in_the_learning_rate(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "--kills", "2", "--keep", "kept", fault="scheduler")
    assert done.code == 1
    assert "the learning rate is" in done.out.splitlines()[-1]
    assert done.out.splitlines()[-1].startswith("different from step ")
    assert {"calm", "killed", "calm.log", "killed.log"} <= set(names(tmp_path / "kept"))


def test_what_differs_only_behind_the_last_step_is_named_by_its_tensor(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "--kills", "1", fault="end")
    assert done.code == 1
    assert done.out.startswith("different in the final state: model.0.bias is ")
    assert done.out.count("(element 3)") == 2


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("fails", 1, "undisturbed, the command ended with exit code 3"),
        ("detached", 2, "the command never called walrecover.attach()"),
    ],
)
def test_what_cannot_be_rehearsed_is_said(tmp_path: Path, fault: str, code: int, says: str) -> None:
    done = rehearse(tmp_path, fault=fault)
    assert done.code == code
    assert says in done.err
    assert not done.out


def test_more_kills_than_steps_are_refused(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "--kills", "60", "--json")
    assert done.code == 2
    assert "--kills can be at most 59" in done.json["error"]["message"]
    assert names(tmp_path) == ["trained.txt"]


def test_a_command_that_is_not_there_ends_as_in_a_shell(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "rehearse", "--", "./no-such-command"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 127
    assert "was not found" in process.stderr


def interrupt(folder: Path, number: signal.Signals) -> int:
    """Send a signal to a rehearsal as its second run begins; its return code."""
    process = start(folder, "--kills", "3")
    assert process.stderr
    line = ""
    while "again with 3 kills" not in line:
        line = process.stderr.readline()
        assert line, "the first run failed"
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rehearsal_that_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    assert interrupt(tmp_path, number) == 128 + number
    assert names(tmp_path) == ["trained.txt"]


def test_a_rehearsal_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    assert interrupt(tmp_path, signal.SIGKILL) == -signal.SIGKILL
    # Its directory stays; that no process does, every test's fixture checks.
    assert len(list(tmp_path.glob(".walrecover-rehearsal-*"))) == 1
