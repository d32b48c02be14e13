"""`walrecover show`: one run's recovery flow, drawn in the terminal."""

from __future__ import annotations

from typing import Any

import click

from walrecover import recovery
from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import clock, seconds, write_json, write_table
from walrecover.cli.views import flow, run_row


@click.command(
    "show",
    help="One run's recovery flow: each attempt, what it resumed, how it ended, what was decided.",
)
@run_argument
@directory
@journal_dir
@as_json
def command(run: str | None, directory: str | None, journal_dir: str | None, as_json: bool) -> int:
    found = resolve(run, directory, journal_dir)
    state = recovery.fold_run(found)
    row, story = run_row(found.name, state), flow(state)
    losses = [loss for record in state.records.values() for loss in record.losses]
    superseded = state.superseded()
    if as_json:
        write_json({**row, "attempts": story, "superseded": superseded, "losses": losses})
        return 0
    click.echo(
        f"run {row['run']}: {row['state']}, step {row['last_step']}, "
        f"{len(story)} attempt{'s' if len(story) != 1 else ''}"
    )
    write_table(
        "",
        ["attempt", "began", "resumed after", "steps", "done again", "ended", "decision", "seconds"],
        [_cells(item) for item in story],
    )
    for item in story:
        for rejection in item["rejected"]:
            click.echo(
                f"attempt {item['attempt']} rejected step {rejection['step']}: {rejection['reason']}"
            )
    for loss in losses:
        click.echo(f"lost from the journal: {loss}")
    return 0


def _cells(item: dict[str, Any]) -> list[str]:
    stages = item["stages"]
    parts = [
        f"{label} {seconds(stages[name])}"
        for label, name in (("planned", "planned"), ("restored", "restored"), ("ran", "ran"))
        if stages[name] is not None
    ]
    point, last = item["recovery_point"], item["last_step"]
    return [
        str(item["attempt"]),
        clock(item["began"]),
        f"step {point}" if point is not None else "the beginning",
        f"{item['first_step']}…{last}" if last is not None else "none",
        str(item["lost_steps"]) if item["lost_steps"] else "",
        item["evidence"] or item["cause"] or "unknown: its holder is gone",
        item["reason"],
        ", ".join(parts),
    ]
