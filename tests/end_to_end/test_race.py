"""The race in small: a bare loop, torchrun with torch.save, and walrecover, with one kill each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = "--layers 1 --width 32 --batch-size 4 --steps-per-epoch 250 --calibration 250"
"""Whole epochs are run: so many steps that the kill, 0.4 s behind the first, comes before the last
wherever a step takes 2 ms, though the bare one was timed while the machine was busy."""


@pytest.mark.slow
def test_a_race_in_small_is_told_by_the_steps_that_were_made(folder: Path) -> None:
    report = folder / "race.json"
    command = [sys.executable, "-m", "tests.bench.goodput", "--contenders", "torch.save,walrecover"]
    command += ["--kills", "1", "--rate", "60", "--seed", "7", *SMALL.split()]
    command += ["--work", str(folder), "--out", str(report)]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    counts = json.loads(report.read_text())["counts"]
    bare, saved, ours = counts["contenders"]
    assert (bare["name"], saved["name"], ours["name"]) == ("bare", "torch.save", "walrecover")
    assert "kills" not in bare
    for row in (bare, saved, ours):  # whatever the machine was busy with
        useful = (counts["steps"] - 1) * row["bare_step_seconds"]
        assert row["goodput"] == pytest.approx(useful / row["seconds"])
    for row in (saved, ours):
        assert row.get("reason") is None
        (kill,) = row["kills"]
        assert 0 < kill["step"] < counts["steps"] and 0 < kill["down"] < row["seconds"]
        assert kill["again"] <= 2 * row["every"] + 1
        assert (row["first_step_that_differs"], row["same_weights"]) == (None, True)
        assert f"| {row['name']} |" in ran.stdout
    assert not list(folder.glob("tmp*"))  # what it ran in is gone


def test_who_is_not_known_is_refused_by_name(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.goodput", "--contenders", "bare,nobody"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2 and "no contender 'nobody'" in ran.stderr
    assert "Traceback" not in ran.stderr
