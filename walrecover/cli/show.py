"""`walrecover show`: one run's recovery flow, drawn in the terminal."""

from __future__ import annotations

from typing import Any

import click

from walrecover import entries as model
from walrecover import recovery
from walrecover import skips as skipping
from walrecover.asof import as_of
from walrecover.cli import times
from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import bytes_of, clock, harmless, seconds, write_json
from walrecover.cli.views import flow, run_row

FILES = 5
"""Of an attempt, and of each kind; --json has all of them."""


@click.command(
    "show",
    help="One run's recovery flow: each attempt, what it resumed, how it ended, what was decided; "
    "and where the time went.",
)
@run_argument
@directory
@journal_dir
@click.option(
    "--at",
    type=click.IntRange(min=0),
    metavar="STEP",
    help="As it was known when this step was completed.",
)
@as_json
def command(
    run: str | None, directory: str | None, journal_dir: str | None, at: int | None, as_json: bool
) -> int:
    found = resolve(run, directory, journal_dir)
    state = recovery.fold_run(found)
    spent, of_time = None, times.UNKNOWN
    if at is None:
        spent = times.spending(state)
        of_time = times.fields(state, spent)
    else:
        state = as_of(state, at, found.name)
    row, story = run_row(found.name, state) | of_time, flow(state, spent)
    losses = [loss for record in state.records.values() for loss in record.losses]
    superseded = state.superseded()
    first = model.origin(state.entries)
    if as_json:
        forked = {"run": first.parent, "step": first.snapshot.step} if first else None
        body = {**row, "forked_from": forked, "attempts": story, "superseded": superseded}
        write_json({**body, "losses": losses})
        return 0
    click.echo(
        f"run {row['run']}: {row['state']}, step {row['last_step']}, "
        f"{len(story)} attempt{'s' if len(story) != 1 else ''}"
    )
    if first:
        left = f", leaving out {skipping.told(first.skips)}" if first.skips else ""
        click.echo(f"forked from run {first.parent} at step {first.snapshot.step}{left}")
    for item in story:
        _draw(item)
    times.draw(row)
    for loss in losses:
        click.echo(f"lost from the journal: {loss}")
    return 0


def _draw(item: dict[str, Any]) -> None:
    """One attempt: what it resumed, how far it came, how it ended, what was decided."""
    stages, point = item["stages"], item["recovery_point"]
    click.echo()
    click.echo(f"attempt {item['attempt']}   {clock(item['began'])}")
    for rejection in item["rejected"]:
        _stage("rejected", f"step {rejection['step']}: {rejection['reason']}")
    again = f", {item['lost_steps']} steps done again" if item["lost_steps"] else ""
    where = f"after step {point}{again}" if point is not None else "from the beginning"
    _stage("planned", where, stages["planned"])
    if back := item["rewind"]:
        _stage("rewound", f"to before step {back['step']}: {back['reason']}")
    if item["skips"]:
        _stage("left out", item["left_out"])
    if stages["restored"] is not None:
        _stage("restored", f"every object of every rank{_source(item)}", stages["restored"])
    if stages["restored"] is not None and item["saved_by"] not in (None, item["ranks"]):
        _stage("resized", _of_ranks(item))
    if item["proof"]:
        _stage("proven" if "verified" in item["proof"] else "unlike", harmless(item["proof"]))
    if item["last_step"] is not None:
        _stage("trained", f"steps {item['first_step']} to {item['last_step']}")
    _draw_files(item["files"])
    if item["cause"] or item["evidence"]:
        cause, evidence = item["cause"], item["evidence"]
        _stage("ended", f"{cause}: {evidence}" if evidence else cause, stages["ran"])
    for artefact in item["artefacts"]:
        _stage("kept", artefact)
    if salvaged := item["salvaged"]:
        _stage("saved" if salvaged["saved"] else "not saved", _of_salvage(salvaged))
    if item["decision"]:
        _stage(item["decision"], item["reason"])


def _source(item: dict[str, Any]) -> str:
    """Where the tensors came from."""
    places = (("memory", item["from_arena"]), ("disk", item["from_disk"]))
    parts = [f"{bytes_of(nbytes)} from {place}" for place, nbytes in places if nbytes]
    why = f" (not from memory: {item['refused']})" if item["refused"] else ""
    return "".join([", " + " and ".join(parts) if parts else "", why])


def _of_ranks(item: dict[str, Any]) -> str:
    text = f"from {item['saved_by']} to {item['ranks']} ranks"
    anew = item["drawn_anew"]
    return f"{text}; drawn anew on each: {', '.join(anew)}" if anew else text


def _of_salvage(salvaged: dict[str, Any]) -> str:
    if salvaged["saved"]:
        return f"step {salvaged['step']}, on the way out"
    return f"step {salvaged['step']}: {salvaged['reason']}; step {salvaged['stands']} stands"


def _draw_files(files: dict[str, list[dict[str, Any]]]) -> None:
    """The script's own checkpoint files: the newest of them, as they came."""
    for kept in files["adopted"][-FILES:]:
        number, how = f"version {kept['number']}", kept.get("how", "")
        _stage("kept", f"{kept['path']}, {number} ({how}; {kept.get('assurance', '')})")
    for file in files["rejected"][-FILES:]:
        where = f"; it lies at {file['aside']}" if file.get("aside") else ""
        _stage("refused", f"{file['path']}: {file['reason']}{where}")
    for back in files["put_back"][-FILES:]:
        where = f"; what lay there is {back['aside']}" if back.get("aside") else ""
        version = f"{back['path']}, version {back['number']}"
        _stage("put back", f"{version} ({back.get('reason', '')}){where}")


def _stage(name: str, text: str, took: float | None = None) -> None:
    click.echo(f"  → {name:9} {text}" + (f"   ({seconds(took)})" if took is not None else ""))
