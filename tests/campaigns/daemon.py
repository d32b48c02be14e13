"""`make torture-daemon`: a serving daemon is killed 200 times while its journals grow.

    make torture-daemon ARGS="--kills 50 --seed 7"

Its follower alone is killed every fourth time. At the end the read model says what the journals
do, and is equal to one that is made anew. The counts go to specs/campaigns/daemon.json.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.campaigns import report
from tests.support.daemon_kills import kill_over_and_over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        counts = kill_over_and_over(Path(name), given.kills, random.Random(given.seed))
    report.write("daemon", counts, given.seed, began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
