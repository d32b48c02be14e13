"""`walrecover verify`: read back every digest of journal and snapshots."""

from __future__ import annotations

from typing import Any

import click

from walrecover import entries as model
from walrecover import snapshot
from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import write_json, write_table
from walrecover.entries import attempt_label
from walrecover.errors import WalrecoverError
from walrecover.journal import examine_all, find_streams
from walrecover.sequence import Sequence


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
    checked: list[dict[str, Any]] = [
        {"what": "sequence", "name": "", "size": len(entries), "problem": None}
    ]
    progress = Console(stderr=True)
    void = model.retired(entries)
    kept = [c.snapshot for c in model.commits(entries) if c.snapshot.manifest not in void]
    for ref in track(kept, "snapshots", console=progress, disable=not progress.is_terminal):
        problem, size = None, 0
        try:
            size = snapshot.verify(found, ref).bytes()
        except (WalrecoverError, OSError) as error:
            problem = str(error)
        checked.append({"what": "snapshot", "name": ref.name, "size": size, "problem": problem})
    streams = find_streams(found.journal)
    for stream, report in examine_all(streams).items():
        label = f"{attempt_label(stream.attempt, stream.nonce)}/{stream.writer}"
        checked.append(
            {"what": "stream", "name": label, "size": report.entries, "problem": report.problem}
        )
    bad = [item for item in checked if item["problem"]]
    if as_json:
        write_json({"run": found.name, "whole": not bad, "checked": checked})
        return 1 if bad else 0
    units = {"sequence": "entries", "snapshot": "bytes", "stream": "events"}
    write_table(
        f"run {found.name}",
        ["what", "name", "size", "verdict"],
        [
            [
                item["what"],
                item["name"],
                f"{item['size']} {units[item['what']]}",
                item["problem"] or "whole",
            ]
            for item in checked
        ],
    )
    return 1 if bad else 0
