"""`walrecover fork`: another run from a kept snapshot."""

from __future__ import annotations

import shlex
from typing import Any

import click
import msgspec

from walrecover import skips as skipping
from walrecover.cli.options import as_json, directory, journal_dir, resolve
from walrecover.cli.output import harmless, write_json
from walrecover.entries import Ancestor
from walrecover.errors import BadInput
from walrecover.fork import Forked, fork
from walrecover.rundir import find_root


@click.command(
    "fork",
    help="Make another run that goes on from a kept snapshot of RUN; RUN stays as it is. With "
    "--skip it leaves out these positions of the data, in whole batches, and the audit shows it.",
)
@click.argument("run")
@click.option(
    "--at", required=True, type=click.IntRange(min=0), metavar="STEP", help="The snapshot's step."
)
@click.option(
    "--skip",
    "wanted",
    multiple=True,
    metavar="A:B",
    help="Leave out positions A to B-1 of the epoch's order; may be given again.",
)
@click.option(
    "--epoch",
    type=click.IntRange(min=0),
    help="Of which pass over the data, from 0 [default: the one in which the snapshot stands].",
)
@click.option(
    "--reader", type=click.IntRange(min=0), help="Of which reader, where loops read several."
)
@click.option("--name", metavar="NAME", help="The new run's name [default: RUN-at-STEP].")
@directory
@journal_dir
@as_json
def command(
    run: str,
    at: int,
    wanted: tuple[str, ...],
    epoch: int | None,
    reader: int | None,
    name: str | None,
    directory: str | None,
    journal_dir: str | None,
    as_json: bool,
) -> int:
    parent = resolve(run, directory, journal_dir)
    skips = tuple(skipping.parse(one) for one in wanted)
    if not skips and (epoch is not None or reader is not None):
        raise BadInput("--epoch and --reader say where a --skip lies, and there is none")
    made = fork(parent, at, name=name, skips=skips, source=reader, epoch=epoch)
    body = answer(made)
    if as_json:
        write_json(body)
    else:
        _print(made, body)
    return 0


def answer(made: Forked) -> dict[str, Any]:
    """The JSON of a fork."""
    origin = made.origin
    return {
        "run": made.run.name,
        "path": str(made.run.path),
        "parent": origin.parent,
        "step": origin.snapshot.step,
        "manifest": origin.snapshot.manifest,
        "skips": [msgspec.structs.asdict(skip) for skip in origin.skips],
        "history": [_stretch(one) for one in origin.history],
        "losses": list(made.gaps),
    }


def _stretch(one: Ancestor) -> dict[str, Any]:
    return {
        "run": one.run,
        "attempt": one.attempt,
        "first_step": one.base + 1,
        "last_step": one.cut,
    }


def _print(made: Forked, body: dict[str, Any]) -> None:
    click.echo(f"run {body['run']}: forked from run {body['parent']} at step {body['step']}")
    click.echo(f"  {body['path']}")
    if made.origin.skips:
        click.echo(f"left out: {skipping.told(made.origin.skips)}")
    for gap in made.gaps:
        click.echo(f"lost from the journal: {harmless(gap)}")
    root = made.run.root
    there = "" if root == find_root(None) else f"--dir {shlex.quote(str(root))} "
    click.echo(f"go on with: walrecover run {there}--name {body['run']} -- python train.py")
