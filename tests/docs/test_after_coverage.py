"""What CI runs only once: `--after-coverage` leaves out no test that draws examples, whose number
is the profile's, and none from where `make coverage` does not look.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRAWN, UNDRAWN = "tests/unit/test_adoption.py", "tests/docs/test_doctor.py"


def collected(*options: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, DRAWN, UNDRAWN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}


def test_what_draws_examples_or_is_not_covered_runs_again() -> None:
    drawn = re.findall(r"@given\((?s:.*?)\ndef (test_\w+)", (ROOT / DRAWN).read_text())
    every, again = collected(), collected("--after-coverage")
    assert len(drawn) > 1
    assert again == {f"{DRAWN}::{name}" for name in drawn} | {
        name for name in every if name.startswith(UNDRAWN)
    }
    assert len(again) < len(every)
