"""`walrecover diff`: what differs between two states, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from typing import Any

import click

from walrecover import difference, renames
from walrecover.cli.comparing import Child, has_torch
from walrecover.cli.options import as_json, directory
from walrecover.cli.output import harmless, write_json, write_table
from walrecover.cli.states import Side, script_of, side_of
from walrecover.difference import Change, Report, Tensor
from walrecover.errors import BadInput

SHOWN = 10
"""Lines of one kind that are printed, and tensors that are read to say by how much."""


@click.command(
    "diff",
    help="What differs between two states: names, shapes, types, parameter groups, step counts, "
    "values, and by how much. A and B are each a run (RUN or RUN@STEP), a snapshot's folder, a "
    "safetensors or torch file, or, once, a script: train.py (run up to attach()), "
    "train.py:build_model or module:name. A script's code is run, with your rights; files are "
    "read without running any. Exit code 0 only if they are identical, 1 if not.",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@directory
@as_json
def command(a: str, b: str, directory: str | None, as_json: bool) -> int:
    if script_of(a) and script_of(b):
        raise BadInput("only one of A and B can be a script: save the other one's state to a file")
    with closing(Child()) as child:
        sides = _sides(a, b, directory, child)
        report = difference.compare(sides[0].state, sides[1].state)
        numbers, notes = _measure(report, sides, child)
    notes = [*sides[0].notes, *sides[1].notes, *report.notes, *notes]
    if as_json:
        write_json(_body(sides, report, numbers, notes))
    else:
        _print(sides, report, numbers, notes)
    return 0 if report.verdict == "identical" else 1


def _sides(a: str, b: str, directory: str | None, child: Child) -> tuple[Side, Side]:
    """A script last: what it does to its process touches nothing then."""
    if script_of(a):
        second = side_of("B", b, directory, child)
        return side_of("A", a, directory, child), second
    return side_of("A", a, directory, child), side_of("B", b, directory, child)


def _measure(
    report: Report, sides: tuple[Side, Side], child: Child
) -> tuple[dict[Change, Any], list[str]]:
    """By how much the first tensors differ."""
    chosen = [change for change in report.changes if change.kind == "tensor"][:SHOWN]
    if not chosen:
        return {}, []
    if not has_torch():
        return {}, ["by how much tensors differ needs torch, which this Python does not have"]
    pairs = []
    for change in chosen:
        leaves = sides[0].state.ranks[change.rank], sides[1].state.ranks[change.rank]
        found = leaves[0][change.path], leaves[1][change.other]
        assert isinstance(found[0], Tensor) and isinstance(found[1], Tensor)
        pairs.append([side.place(change.rank, t) for side, t in zip(sides, found, strict=True)])
    return dict(zip(chosen, child.ask("numbers", pairs), strict=True)), []


def _body(
    sides: tuple[Side, Side], report: Report, numbers: dict[Change, Any], notes: list[str]
) -> dict[str, Any]:
    names = [{"what": side.what, "name": side.state.label} for side in sides]
    return {
        "a": names[0],
        "b": names[1],
        "verdict": report.verdict,
        "compared": report.compared,
        "renamed": [
            {"rank": rank, "a": r.here, "b": r.there, "by_a": r.by_here, "by_b": r.by_there}
            for rank, r in report.renamed
        ],
        "differences": [
            change._asdict() | ({"numbers": numbers[change]} if change in numbers else {})
            for change in report.changes
        ],
        "notes": notes,
    }


def _print(
    sides: tuple[Side, Side], report: Report, numbers: dict[Change, Any], notes: list[str]
) -> None:
    for letter, side in zip("AB", sides, strict=True):
        click.echo(f"{letter}: {side.state.label} ({side.what})")
    for note in notes:
        click.echo(f"note: {note}")
    for sentence in renames.said([rename for _, rename in report.renamed], "A", "B"):
        click.echo(f"renamed: {harmless(sentence)}")
    ranks = len({change.rank for change in report.changes}) > 1
    for kind, group in groupby(report.changes, key=lambda change: change.kind):
        found = list(group)
        click.echo(f"\n{kind}: {difference.KINDS[kind]} ({len(found)})")
        columns = [*(["rank"] if ranks else []), "name", *_columns(kind)]
        lines = _steps(found) if kind == "step" else [(c.rank, _name(c), c) for c in found]
        rows = [
            [*([str(rank)] if ranks else []), name, *_cells(change, numbers)]
            for rank, name, change in lines
        ]
        write_table("", columns, rows[:SHOWN])
        if len(rows) > SHOWN:
            click.echo(f"… and {len(rows) - SHOWN} more (--json has all)")
    click.echo(_verdict(report))


def _steps(changes: list[Change]) -> list[tuple[int, str, Change]]:
    """One line for the parameters of an optimizer that count alike."""
    alike: dict[tuple[int, str, str, str], list[Change]] = {}
    for change in changes:
        optimizer = change.path.rpartition(".state.")[0]
        alike.setdefault((change.rank, optimizer, change.a, change.b), []).append(change)
    return [
        (rank, f"{optimizer}: {len(found)} parameters", found[0])
        for (rank, optimizer, _, _), found in alike.items()
    ]


def _verdict(report: Report) -> str:
    compared = f"{report.compared} names have the same shapes and types"
    if not report.form_only:
        compared = f"{report.compared} values are the same, bit for bit"
    if report.verdict == "identical":
        return f"{'fits' if report.form_only else 'identical'}: {compared}"
    if report.verdict == "renamed":
        return f"renamed: {compared}, under other names"
    return f"different: {len(report.changes)} differences, {report.compared} names in both"


def _name(change: Change) -> str:
    if change.path and change.other and change.path != change.other:
        return f"{change.path} → {change.other}"
    return change.path or change.other


def _columns(kind: str) -> list[str]:
    if kind.startswith("only"):
        return ["what"]
    return ["differ", "largest", "first"] if kind == "tensor" else ["A", "B"]


def _cells(change: Change, numbers: dict[Change, Any]) -> Iterator[str]:
    if change.kind.startswith("only"):
        yield change.a or change.b
        return
    if change.kind != "tensor":
        yield from (change.a, change.b)
        return
    found = numbers.get(change)
    if found is None:
        yield change.a
        return
    nans = f", NaN: {found['nan_a']} in A, {found['nan_b']} in B"
    yield f"{found['elements']} of {found['of']}" + (
        nans if found["nan_a"] or found["nan_b"] else ""
    )
    if not found["unequal"]:
        yield "equal as numbers, other bits"
    else:
        ulps = "" if found["max_ulps"] is None else f", {found['max_ulps']:.0f} ulps"
        yield f"{found['max_abs']:.3g}, relative {found['max_rel']:.2g}{ulps}"
    yield f"{found['first']}: {found['first_a']} / {found['first_b']}"
