"""Where a run's time went, and the pace of its snapshots: as plain values, and drawn.

Owns the words; the sums are `goodput`'s, the formula `pace`'s.
"""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from walrecover import entries as model
from walrecover import goodput
from walrecover.cli.output import seconds
from walrecover.cli.views import state_word
from walrecover.goodput import KINDS, Goodput, Kind
from walrecover.pace import optimum
from walrecover.state import RunState

WORDS: dict[Kind, str] = {
    "productive": "productive",
    "reexecuted": "re-executed",
    "capture_stall": "capture stall",
    "detection": "detection",
    "restart": "restart",
    "restore": "restore",
    "idle": "idle",
}
UNKNOWN: dict[str, Any] = {"goodput": None, "pace": None}
"""The fields of a run as it was at a step: sums of time cannot be cut there."""

BAR = 30
"""Characters of a bar that stands for all of the time."""


def spending(state: RunState) -> Goodput | None:
    """Where the time went, until now where the run is alive. None where it cannot be told."""
    return goodput.split(state, time.time() if state_word(state) == "running" else None)


def fields(state: RunState, found: Goodput | None) -> dict[str, Any]:
    """What the JSON of a run says of them: `goodput` and `pace`, null where nothing is known."""
    set_by = _pace(state)
    pace = msgspec.structs.asdict(set_by) if set_by else None
    if found is None:
        return {"goodput": None, "pace": pace}
    between = found.rate.between()
    return {
        "goodput": {
            "share": found.share,
            "wall": found.wall,
            "seconds": dict(found.seconds),
            "failures": found.rate.failures,
            "between_failures": between,
            "capture_cost": found.cost,
            "best_pace": _best(found),
        },
        "pace": pace,
    }


def _pace(state: RunState) -> Any:
    """The newest pace of the newest attempt: an older one's does not hold any more."""
    newest = model.newest_attempt(state.entries)
    records = state.of_attempt(newest.number, newest.nonce) if newest else {}
    return next((record.pace for record in records.values() if record.pace), None)


def _best(found: Goodput) -> float | None:
    between = found.rate.between()
    if between is None or found.cost is None:
        return None
    return optimum(found.cost, between)


def share(row: dict[str, Any]) -> str:
    """A cell of a table."""
    return f"{row['goodput']['share']:.1%}" if row["goodput"] else ""


def pace(row: dict[str, Any]) -> str:
    """A cell of a table: the pace that was set, and the best one."""
    said = [_steps(row["pace"]["every"])] if row["pace"] else []
    if row["goodput"] and row["goodput"]["best_pace"] is not None:
        said.append(f"best {seconds(row['goodput']['best_pace'])}")
    return ", ".join(said)


def draw(row: dict[str, Any]) -> None:
    """The run's time as bars, and its pace beside the best one."""
    found = row["goodput"]
    if found is None:
        return
    click.echo()
    click.echo(f"goodput {found['share']:.1%} of {seconds(found['wall'])}")
    for kind in KINDS:
        part = found["seconds"][kind]
        of_all = part / found["wall"] if found["wall"] > 0 else 0.0
        bar = "█" * round(BAR * of_all)
        click.echo(f"  {WORDS[kind]:13} {seconds(part):>8} {of_all:6.1%}  {bar}".rstrip())
    if said := _said_of_pace(row):
        click.echo(f"pace: {said}")


def _said_of_pace(row: dict[str, Any]) -> str:
    said = []
    if current := row["pace"]:
        about = f", about every {seconds(current['seconds'])}" if current["seconds"] else ""
        said.append(f"a snapshot every {_steps(current['every'])}{about}")
    found = row["goodput"]
    if found["best_pace"] is not None:
        said.append(
            f"best is every {seconds(found['best_pace'])}: one costs "
            f"{seconds(found['capture_cost'])}, and a failure came every "
            f"{seconds(found['between_failures'])} of training"
        )
    return "; ".join(said)


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"
