"""Goodput under kills beside torchrun with torch.save: the race in short, of `make race`.

Measured at eight kills a minute, told at one a minute, where the issue's bound is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.goodput.costs import replay
from tests.bench.goodput.table import SEED, costs_of
from tests.bench.measure import Row, show

ROOT = Path(__file__).parents[2]
KILLS, PER_MINUTE, RACE_SEED = 5, 8, 1
BETWEEN_SECONDS, BOUND = 60.0, 0.90


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "race.json"
        command = [sys.executable, "-m", "tests.bench.goodput", "--out", str(report)]
        command += ["--contenders", "torch.save,walrecover", "--seed", str(RACE_SEED)]
        command += ["--kills", str(KILLS), "--rate", str(PER_MINUTE), "--work", name]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        _, peer, ours = json.loads(report.read_text())["counts"]["contenders"]
    reasons = [f"{row['name']}: {row['reason']}" for row in (peer, ours) if "reason" in row]
    if reasons:
        return [Row("goodput under kills", "; ".join(reasons), "", None, "runs", False)]
    mine, theirs = (replay(costs_of(row), BETWEEN_SECONDS, SEED) for row in (ours, peer))
    what = "goodput at a kill a minute, beside torch.save"
    told = f"{mine:.3f}", f"{theirs:.3f}", mine / theirs
    good = mine >= BOUND and mine > theirs
    return [Row(what, *told, f"≥ {BOUND:.2f} of the ceiling, above the peer", good)]


if __name__ == "__main__":
    raise SystemExit(not show("Goodput under kills", rows()))
