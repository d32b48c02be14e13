"""Every bit of a small run directory flipped, one at a time.

    make torture-bit-flips ARGS="--every 50"

`--every N` takes each N-th bit, from a drawn one on. The counts go to
specs/campaigns/bit_flips.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from tests.campaigns import report
from tests.support import flips
from tests.support.forks import Forks
from tests.support.protocol import holder
from walrecover import recovery

CHUNK = 1000
MEMORY = Path("/dev/shm")


def share(folder: Path, number: int, chosen: list[flips.Flip]) -> Counter[str]:
    """One worker's part, on a copy of its own."""
    copy = folder / str(number)
    shutil.copytree(folder / "run", copy)
    counts: Counter[str] = Counter()
    result = copy / "result"
    parts = [chosen[start : start + CHUNK] for start in range(0, len(chosen), CHUNK)]
    with Forks() as server:
        while parts:
            part = parts.pop()
            result.unlink(missing_ok=True)
            code = server.call(
                "tests.support.flips:check", root=str(copy), flips=part, result=str(result)
            )
            if code:  # the bit is told, those before and behind it are flipped again
                at = int((copy / "result.place").read_text())
                said = result.read_text() if result.exists() else f"exit code {code}"
                counts[f"WRONG {part[at]}: {said}"] += 1
                parts += filter(None, (part[:at], part[at + 1 :]))
                continue
            counts += Counter(json.loads(result.read_text()))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    began = time.monotonic()
    first = random.Random(chosen.seed).randrange(chosen.every)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        run = flips.build(folder / "run", steps=1, saves=(2,))
        recovery.begin_attempt(run, holder())  # an attempt that resumes, and died as it started
        bits = list(islice(flips.every_bit(run), first, None, chosen.every))
        with ThreadPoolExecutor(chosen.workers) as pool:
            parts = [bits[n :: chosen.workers] for n in range(chosen.workers)]
            found = sum(pool.map(share, [folder] * len(parts), range(len(parts)), parts), Counter())
    wrong = sorted(what for what in found if what.startswith("WRONG"))
    counts = {"bits": found.total(), "every": chosen.every, "verdicts": dict(sorted(found.items()))}
    report.write("bit_flips", counts, chosen.seed, began)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
