"""What the pages show of the guard: alerts, readings, retention and archive.

Pure: rows of the guard's file in, markup out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from walrecover.cli.output import clock
from walrecover_daemon.html import Markup, join, tag
from walrecover_daemon.pieces import age, size, table

Row = dict[str, Any]

DELIVERY = {
    "waiting": "not delivered yet",
    "delivered": "delivered",
    "refused": "refused",
    "expired": "given up",
    "unsent": "nobody to send it to",
}


def alerts(found: Sequence[Row], now: float, *, of_one: bool = False) -> Markup:
    """`of_one`: all are of one run, which need not be named."""
    if not found:
        return tag("p", "No alerts.")
    rows = (
        [
            f"{clock(row['at'])}, {age(row['at'], now)}",
            [tag("span", row["kind"], class_=f"state {row['state']}"), _over(row)],
            *([] if of_one else [row["run"] or row["directory"]]),
            row["reason"],
            _delivery(row),
        ]
        for row in found
    )
    about = () if of_one else ("about",)
    return table("Alerts, what lasts first", ("since", "alert", *about, "why", "webhook"), rows)


def _over(row: Row) -> str:
    return "" if row["state"] == "firing" else ": over"


def _delivery(row: Row) -> str:
    said = DELIVERY[row["delivery"]]
    return f"{said} ({row['answer']})" if row["answer"] and row["delivery"] != "delivered" else said


def guard(
    found: Sequence[Row], upkeep: Sequence[Row], snapshots: Sequence[Row], now: float
) -> Markup:
    """Of one run: its alerts, what was read back, what was retired and archived."""
    there = [row for row in snapshots if row["status"] != "retired"]
    read = [row["read_at"] for row in there if row["read_at"]]
    whole = sum(row["problem"] == "" for row in there)
    facts = [("read back whole", f"{whole} of {len(there)} snapshots")]
    if read:
        facts.append(("last reading", age(max(read), now)))
    facts += [(row["what"], _upkeep(row, now)) for row in upkeep]
    return join(
        [
            tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]),
            alerts(found, now, of_one=True),
        ]
    )


def _upkeep(row: Row, now: float) -> str:
    if row["problem"]:
        return f"{row['problem']} ({age(row['at'], now)})"
    if row["what"] == "archive":
        return f"up to entry {row['amount']}, {size(row['bytes'])} sent, {age(row['at'], now)}"
    return f"{row['amount']} retired, {size(row['bytes'])} freed, {age(row['at'], now)}"
