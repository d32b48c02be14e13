"""The real py-spy looks into a rank that hangs: run by `make test-system`, needs the right to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_hangs import LOOPS, supervise
from walrecover import events as ev

pytestmark = pytest.mark.system


def test_py_spy_names_the_line_that_a_rank_hangs_in(tmp_path: Path) -> None:
    path = f"{os.path.dirname(sys.executable)}:{os.defpath}"
    ended = supervise(tmp_path, LOOPS, "--hang-timeout", "step=1s", path=path)
    assert ended.code == 0, ended.said
    (hang,) = ended.events(ev.HangDetected)
    lines = (tmp_path / "train.py").read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if "here it hangs" in line)
    assert f"train.py line {number} in <module>" in hang.reason
    (artefact,) = (ended.run.path / name for name in hang.artefacts)
    assert '"MainThread"' in artefact.read_text()
