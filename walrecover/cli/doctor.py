"""`walrecover doctor`: options in, findings out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from walrecover.cli.options import as_json, directory, journal_dir
from walrecover.cli.output import write_json, write_table
from walrecover.cli.run import name_of_command
from walrecover.findings import FAILURE, OK, Finding, examine
from walrecover.findings.sizes import parse_size
from walrecover.rundir import RunDir, check_name, find_root, list_runs


@click.command(
    "doctor",
    context_settings={"allow_interspersed_args": False},
    help="Say what is wrong with a place to train in, and what to do: storage, rights, space, "
    "limits, port, GPU, versions. Give the command to look at what it needs. Exit code 1 where "
    "something fails. Nothing that is tried stays.",
)
@click.option("--name", metavar="RUN", envvar="WALRECOVER_RUN", help="The run's name.")
@directory
@journal_dir
@click.option(
    "--size",
    metavar="SIZE",
    help="Of a snapshot, where none is there yet: 500MB, 12GiB. Weights and optimizer's state.",
)
@as_json
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD…]")
def command(
    name: str | None,
    directory: str | None,
    journal_dir: str | None,
    size: str | None,
    as_json: bool,
    cmd: tuple[str, ...],
) -> int:
    from walrecover.doctor import gather

    known = parse_size(size) if size is not None else None
    root = find_root(directory)
    journal = Path(journal_dir).absolute() if journal_dir else None
    run = RunDir(root, check_name(name) if name else _name(root, cmd), journal)
    found = examine(gather(run, cmd, os.environ, size=known, unusable=_unusable(cmd)))
    failed = any(finding.level == FAILURE for finding in found)
    if as_json:
        findings = [_plain(finding) for finding in found]
        write_json(
            {"directory": str(root), "run": run.name, "fit": not failed, "findings": findings}
        )
    else:
        _draw(str(root), found)
    return 1 if failed else 0


def _name(root: Path, cmd: Sequence[str]) -> str:
    """The command's run, else the newest there is, else one that is not there."""
    if cmd:
        return name_of_command(list(cmd))
    try:
        known = list_runs(root)
    except OSError:  # one of the findings
        known = []
    return known[0] if known else "run"


def _unusable(cmd: Sequence[str]) -> str:
    """Why the command cannot be run, as `walrecover run` would say it."""
    from walrecover.supervisor.child import Command, Unusable

    try:
        if cmd:
            Command.find(cmd, os.environ)
    except Unusable as error:
        return str(error)
    return ""


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "level": finding.level,
        "found": finding.found,
        "consequence": finding.consequence,
        "remedy": finding.remedy,
    }


def _draw(root: str, found: Sequence[Finding]) -> None:
    rows = []
    for finding in found:
        what = finding.found
        if finding.level != OK:
            what += f"\n→ {finding.consequence}\n→ {finding.remedy}"
        rows.append([finding.level, finding.check, what])
    write_table(root, ["level", "check", "found → consequence → remedy"], rows)
