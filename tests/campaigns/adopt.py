"""`make torture-adopt`: Show 5 at full size. Unchanged scripts that save in each way and format are
killed, they or their supervisor, at every event of a save: which version does the next one find?"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.campaigns.report import ROOT, write
from tests.support.savers import SAVERS, contents_of, whole_after_each

SCRIPT = ROOT / "tests" / "end_to_end" / "scripts" / "overwrites.py"
NAMES = ("model.pt", "model.safetensors")


def killed_at_every_event(saver: str, name: str, whom: str) -> dict[str, int | bool]:
    """Kills, and the attempts that did not find the newest whole version."""
    with tempfile.TemporaryDirectory() as place:
        whole = whole_after_each(SAVERS[saver], Path(place) / name, contents_of(name))
        line = [
            sys.executable, "-m", "walrecover.cli", "run", "--name", "run",
            "--adopt", f"out/{name}", "--backoff", "0", "--max-restarts", "100000", "--",
            sys.executable, str(SCRIPT), saver, name, *map(str, range(len(whole))), "-1",
        ]  # fmt: skip
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "WHOM": whom}
        for _ in range(len(whole) + 1):
            done = subprocess.run(line, cwd=place, env=environ, stderr=subprocess.DEVNULL)
            if done.returncode == 0:
                break
        expected = [0]
        for is_whole in whole:
            expected.append(expected[-1] + 1 + is_whole)
        found = [int(number) for number in (Path(place) / "attempts").read_text().split()]
        wrong = sum(one != other for one, other in zip(found, expected, strict=False))
        wrong += abs(len(found) - len(expected))
        return {"kills": len(whole), "wrong": wrong, "ended_in_order": done.returncode == 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=40, help="writes in which a file is saved")
    args = parser.parse_args()
    os.environ["PIECES"] = str(args.pieces)
    import tests.support.savers as savers

    savers.PIECES = args.pieces
    began = time.monotonic()
    counts = {}
    for saver in SAVERS:
        for name in NAMES:
            for whom in ("script", "supervisor"):
                label = f"{name}, {saver}, the {whom} killed"
                counts[label] = killed_at_every_event(saver, name, whom)
                print(label, counts[label], file=sys.stderr)
    write("adopt", counts, 0, began)
    return 0 if all(c["ended_in_order"] and not c["wrong"] for c in counts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
