"""`walrecover verify`: read back every digest of journal and snapshots."""

from __future__ import annotations

import click

from walrecover import snapshot
from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import write_json, write_table
from walrecover.sequence import Sequence
from walrecover.verifying import UNITS, verify


@click.command(
    "verify",
    help="Read back every digest of a run's sequence, journal and snapshots. Exit code 1 where "
    "something is not what was written.",
)
@run_argument
@directory
@journal_dir
@as_json
def command(run: str | None, directory: str | None, journal_dir: str | None, as_json: bool) -> int:
    from rich.console import Console
    from rich.progress import track

    found = resolve(run, directory, journal_dir)
    entries = Sequence(found.sequence).read()
    live = snapshot.live(entries)
    progress = Console(stderr=True)
    seen = track(
        verify(found, entries), "verify", total=1 + len(live), console=progress,
        disable=not progress.is_terminal,
    )  # fmt: skip
    checked = [one._asdict() for one in seen]
    bad = [item for item in checked if item["problem"]]
    if as_json:
        write_json({"run": found.name, "whole": not bad, "checked": checked})
        return 1 if bad else 0
    write_table(
        f"run {found.name}",
        ["what", "name", "size", "verdict"],
        [
            [
                item["what"],
                item["name"],
                f"{item['size']} {UNITS[item['what']]}",
                item["problem"] or "whole",
            ]
            for item in checked
        ],
    )
    return 1 if bad else 0
