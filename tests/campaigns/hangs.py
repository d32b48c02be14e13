"""`make torture-hangs`: 1,000 virtual hours with 120 planted hangs, 80 stragglers and 40 sleeps."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import Counter
from typing import Any

from tests.campaigns.report import write
from tests.support.hang_world import Counts, simulate

LATEST = 3.0
FALSE_ALARMS = 1


def summary(counts: Counts) -> dict[str, Any]:
    late = sorted(found.lateness for found in counts.hangs)
    return {
        "virtual_hours": counts.hours,
        "virtual_steps": counts.steps,
        "planted": counts.planted,
        "hangs_found": len(counts.hangs),
        "found_by_phase": dict(Counter(found.span for found in counts.hangs)),
        "lateness_in_limits": {
            "median": round(statistics.median(late), 3),
            "latest": round(late[-1], 3),
            "bound": LATEST,
        },
        "false_alarms": counts.false_alarms,
    }


def holds(counts: Counts) -> bool:
    return (
        len(counts.hangs) == counts.planted["hangs"]
        and all(found.lateness <= LATEST for found in counts.hangs)
        and len(counts.false_alarms) <= FALSE_ALARMS
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--hangs", type=int, default=120)
    parser.add_argument("--stragglers", type=int, default=80)
    parser.add_argument("--sleeps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    counts = simulate(
        args.seed, args.hours, hung=args.hangs, slow=args.stragglers, asleep=args.sleeps
    )
    write("hangs", summary(counts), args.seed, began)
    return 0 if holds(counts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
