"""`walrecover compare`: where two histories part, and in what."""

from __future__ import annotations

from typing import Any

import click

from walrecover import entries as model
from walrecover import histories, lineage, past, recovery
from walrecover import skips as skipping
from walrecover.cli.options import as_json, directory, journal_dir, resolve
from walrecover.cli.output import harmless, write_json, write_table
from walrecover.entries import Ancestor, Entry
from walrecover.errors import BadInput
from walrecover.histories import Outcome, Parting
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence


class Side:
    """One run, its surviving history, and how far it has come."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.entries: list[Entry] = Sequence(run.sequence).read()
        self.history: tuple[Ancestor, ...] = lineage.history(run.name, self.entries)
        state = recovery.fold_run(run, self.entries)
        first = model.origin(self.entries)
        self.last = max(state.last_step(), first.snapshot.step if first else 0)
        self.gaps: list[str] = []
        self.ranks = past.ranks(run, self.history)
        self.skips = model.skips(self.entries)

    def steps(self, rank: int, after: int) -> Any:
        events = past.read(self.run, self.history, self.gaps, rank=rank, after=after)
        return histories.steps((told.of, told.event) for told in events)


@click.command(
    "compare",
    help="Two runs' histories, step by step: the first step at which they differ, and in what, "
    "causes first. Steps that were superseded do not count. Exit code 0 only if no step that both "
    "have differs.",
)
@click.argument("a", metavar="RUN_A")
@click.argument("b", metavar="RUN_B")
@directory
@journal_dir
@as_json
def command(a: str, b: str, directory: str | None, journal_dir: str | None, as_json: bool) -> int:
    if a == b:
        raise BadInput(f"{a} is one run: compare it with another")
    sides = Side(resolve(a, directory, journal_dir)), Side(resolve(b, directory, journal_dir))
    common = histories.shared(sides[0].history, sides[1].history)
    ranks = sorted(set(sides[0].ranks) & set(sides[1].ranks))
    outcomes = [
        histories.compare(rank, sides[0].steps(rank, common), sides[1].steps(rank, common))
        for rank in ranks
    ]
    gaps = list(dict.fromkeys([*sides[0].gaps, *sides[1].gaps]))
    parted = [one.parting for one in outcomes if one.parting]
    first = min(parted, key=lambda one: (one.step, one.rank), default=None)
    last = max([common, *(one.last for one in outcomes)])
    if last == 0:
        raise BadInput(f"runs {a} and {b} have no step in common, as far as their journals tell")
    body = _body(sides, common, last, first, outcomes, gaps)
    if as_json:
        write_json(body)
    else:
        _print(sides, body, first)
    return 1 if first or gaps else 0


def _body(
    sides: tuple[Side, Side],
    common: int,
    last: int,
    first: Parting | None,
    outcomes: list[Outcome],
    gaps: list[str],
) -> dict[str, Any]:
    names = [
        {"run": side.run.name, "last_step": side.last, "ranks": len(side.ranks)} for side in sides
    ]
    parting = None
    if first is not None:
        found = [one._asdict() for one in first.found]
        parting = {"step": first.step, "rank": first.rank, "differences": found}
    return {
        "a": names[0],
        "b": names[1],
        "verdict": "different" if first else "unknown" if gaps else "identical",
        "shared_through": common,
        "compared": sum(one.compared for one in outcomes),
        "last_common_step": last,
        "first_difference": parting,
        "losses": gaps,
    }


def _print(sides: tuple[Side, Side], body: dict[str, Any], first: Parting | None) -> None:
    for letter, side in zip("AB", sides, strict=True):
        ranks = f"{len(side.ranks)} rank{'s' if len(side.ranks) != 1 else ''}"
        left = f", leaves out {skipping.told(side.skips)}" if side.skips else ""
        click.echo(f"{letter}: run {side.run.name}, step {side.last}, {ranks}{left}")
    for gap in body["losses"]:
        click.echo(f"lost from the journal: {harmless(gap)}")
    if body["shared_through"]:
        click.echo(f"one history through step {body['shared_through']}")
    if first is None:
        sure = ", as far as the journals tell" if body["losses"] else ""
        click.echo(f"no difference through step {body['last_common_step']}{sure}")
        return
    rank = f" of rank {first.rank}" if len(sides[0].ranks) > 1 else ""
    click.echo(f"first difference: step {first.step}{rank}: {harmless(first.found[0].what)}")
    rows = [(one.what, one.before, one.after) for one in first.found]
    write_table("", ["what", "A", "B"], rows)
