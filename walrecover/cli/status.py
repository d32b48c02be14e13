"""`walrecover status`: the runs of a directory."""

from __future__ import annotations

import time

import click

from walrecover import recovery
from walrecover.cli import times
from walrecover.cli.options import as_json, directory, journal_dir
from walrecover.cli.output import seconds, write_json, write_table
from walrecover.cli.views import run_row
from walrecover.errors import BadInput, WalrecoverError
from walrecover.rundir import find_root, list_runs, open_run

COLUMNS = ("run", "state", "step", "attempts", "recovery point", "last end", "goodput", "pace")


@click.command("status", help="The runs of a directory, the newest first.")
@directory
@journal_dir
@as_json
def command(directory: str | None, journal_dir: str | None, as_json: bool) -> int:
    from pathlib import Path

    root = find_root(directory)
    names = list_runs(root)
    if not names and not (root / "runs").is_dir():
        raise BadInput(
            f"{root} is not a walrecover directory: start a run with "
            f"'walrecover run -- python train.py', or give the directory with --dir"
        )
    journal = Path(journal_dir).absolute() if journal_dir else None
    rows = []
    for name in names:
        try:
            state = recovery.fold_run(open_run(root, name, journal))
            rows.append(run_row(name, state) | times.fields(state, times.spending(state)))
        except (WalrecoverError, OSError) as error:
            rows.append({"run": name, "state": "damaged", "problem": str(error)})
    if as_json:
        write_json({"directory": str(root), "runs": rows})
        return 0
    cells = []
    for row in rows:
        if row["state"] == "damaged":
            cells.append([row["run"], "damaged", "", "", str(row["problem"]), "", "", ""])
            continue
        point = row["recovery_point"]
        age = seconds(time.time() - row["committed_at"]) + " ago" if row["committed_at"] else ""
        cells.append(
            [
                row["run"],
                row["state"],
                str(row["last_step"]),
                str(row["attempts"]),
                f"step {point}, {age}" if point is not None else "none",
                row["last_end"]["cause"],
                times.share(row),
                times.pace(row),
            ]
        )
    write_table("", COLUMNS, cells)
    return 0
