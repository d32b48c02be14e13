"""`walrecover replay`: what recovery would restore, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from walrecover import recovery
from walrecover.asof import as_of
from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import write_json
from walrecover.entries import Rejected, SnapshotRef
from walrecover.recovery import Verdict
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.state import RunState


@click.command(
    "replay",
    help="Fold a run's journal: the last consistent state, what was rejected and why, and what "
    "was lost. Exit code 1 where nothing can be recovered. Weights between two snapshots are not "
    "in the journal: they come back by training those steps again.",
)
@run_argument
@directory
@journal_dir
@click.option(
    "--at",
    "--to-step",
    "at",
    type=click.IntRange(min=0),
    metavar="STEP",
    help="As it was known at this step, and the newest kept snapshot at or before it.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the state as files: state.safetensors and state.json.",
)
@as_json
def command(
    run: str | None,
    directory: str | None,
    journal_dir: str | None,
    at: int | None,
    into: Path | None,
    as_json: bool,
) -> int:
    found = resolve(run, directory, journal_dir)
    entries = Sequence(found.sequence).read()
    verdict = recovery.choose(found, entries, at=at)
    state = recovery.fold_run(found, entries)
    if at is not None:
        state = as_of(state, at, found.name)
    body = answer(found, state, verdict, at)
    if into is not None and verdict.base is not None:
        from walrecover.cli.export_state import write_state

        body["into"] = str(write_state(found, verdict.base, into))
    if as_json:
        write_json(body)
    else:
        _print(body)
    return 0 if verdict.base is not None else 1


def answer(run: RunDir, state: RunState, verdict: Verdict, at: int | None) -> dict[str, Any]:
    """The JSON of a replay."""
    last = state.last_step()
    if at is not None:
        last = min(last, at)
    base = verdict.base
    return {
        "run": run.name,
        "recovery_point": _point(run, base) if base else None,
        "last_step": last,
        "lost_steps": max(0, last - (base.step if base else 0)),
        "rejected": [_rejection(item) for item in verdict.rejected],
        "losses": [loss for record in state.records.values() for loss in record.losses],
        "finished": state.finished,
    }


def _point(run: RunDir, ref: SnapshotRef) -> dict[str, Any]:
    path = run.snapshots / ref.name
    return {"step": ref.step, "attempt": ref.attempt, "path": str(path), "manifest": ref.manifest}


def _rejection(item: Rejected) -> dict[str, Any]:
    return {"step": item.step, "attempt": item.attempt, "reason": item.reason}


def _print(body: dict[str, Any]) -> None:
    point = body["recovery_point"]
    click.echo(f"run {body['run']}" + (" (finished)" if body["finished"] else ""))
    if point:
        click.echo(f"recovery point: step {point['step']}, of attempt {point['attempt']}, verified")
        click.echo(f"  {point['path']}")
    else:
        click.echo("recovery point: none; the run would start from the beginning")
    click.echo(
        f"last completed step: {body['last_step']}"
        + (f"; {body['lost_steps']} steps would be done again" if body["lost_steps"] else "")
    )
    for item in body["rejected"]:
        click.echo(f"rejected: step {item['step']}, of attempt {item['attempt']}: {item['reason']}")
    for loss in body["losses"]:
        click.echo(f"lost from the journal: {loss}")
    if "into" in body:
        click.echo(f"written: {body['into']}")
