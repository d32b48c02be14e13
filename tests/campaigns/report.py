"""What a campaign leaves behind, as specs/campaigns/NAME.json: counts, seed, commit, duration."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def write(
    name: str, counts: Mapping[str, Any], seed: int, began: float, path: Path | None = None
) -> Path:
    """Write the report of a campaign that began at `began` (time.monotonic)."""
    path = path or ROOT / "specs" / "campaigns" / f"{name}.json"
    body = {
        "campaign": name,
        "counts": dict(counts),
        "seed": seed,
        "commit": _commit(),
        "duration_seconds": round(time.monotonic() - began, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")
    print(path.read_text(), end="")
    return path


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
