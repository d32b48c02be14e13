"""`make torture-crash-states`: the crash states of a two-rank run, at full size.

In both orders of names; then recoveries are recorded over a sample of crash states, and the crash
states of each of those recovered (P7). Every recording is new, and so are its states.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.campaigns.report import write
from tests.crash_states import Report, explore, ops, promises, table
from tests.crash_states.model import Order
from tests.crash_states.recorded import recoveries, story

SHOWN = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=150_000, help="for each of the two orders")
    parser.add_argument("--recoveries", type=int, default=100, help="recorded over crash states")
    parser.add_argument("--states-of-recovery", type=int, default=500, help="for each of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        operations = story(folder / "run")
        counts: dict[str, Any] = {
            "operations": len(operations),
            "any": in_order(operations, "any", args),
            "ordered": in_order(operations, "ordered", args),
            "recoveries": of_recoveries(operations, folder, args),
        }
    write("crash_states", counts, args.seed, began)
    parts = (counts["any"], counts["ordered"], counts["recoveries"])
    return 1 if any(part["violations"] for part in parts) else 0


def in_order(operations: list[ops.Op], order: Order, args: argparse.Namespace) -> dict[str, Any]:
    report = explore(
        operations, promises.check, seed=args.seed, budget=args.states, order=order,
        rows=table.rows(operations), workers=args.workers, stop_after=100,
    )  # fmt: skip
    print(f"order {order!r}\n{report}", file=sys.stderr)
    show(report)
    return {
        "states": report.checked,
        "distinct_trees": report.distinct,
        "rows": dict(sorted(report.rows.items())),
        "exhausted": report.exhausted,
        "violations": len(report.violations),
        "states_per_second": round(report.checked / report.seconds),
    }


def of_recoveries(
    operations: list[ops.Op], folder: Path, args: argparse.Namespace
) -> dict[str, int]:
    counts = {"recorded": 0, "states": 0, "distinct_trees": 0, "violations": 0}
    if not args.recoveries:
        return counts
    recorded = recoveries(
        operations, table.rows(operations), folder, seed=args.seed, count=args.recoveries
    )
    for again, check in recorded:
        report = explore(
            again, check, seed=args.seed, budget=args.states_of_recovery,
            order=("any", "ordered")[counts["recorded"] % 2], workers=args.workers, stop_after=100,
        )  # fmt: skip
        show(report)
        counts["recorded"] += 1
        counts["states"] += report.checked
        counts["distinct_trees"] += report.distinct
        counts["violations"] += len(report.violations)
    print(f"recoveries: {counts}", file=sys.stderr)
    return counts


def show(report: Report) -> None:
    for violation in report.violations[:SHOWN]:
        print(violation, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
