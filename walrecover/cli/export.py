"""`walrecover export`: a run as one portable file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from walrecover import __version__
from walrecover.cli.options import as_json, directory, journal_dir, resolve
from walrecover.cli.output import bytes_of, harmless, progress_of, write_json
from walrecover.exporting import Exported, export


@click.command(
    "export",
    help="Write RUN into one file (tar, zstd), with sums that sha256sum checks. RUN may go on "
    "training meanwhile. What does not verify is left out and named: exit code 1.",
)
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@directory
@journal_dir
@as_json
def command(
    run: str, file: Path, directory: str | None, journal_dir: str | None, as_json: bool
) -> int:
    found = resolve(run, directory, journal_dir)
    with progress_of("export") as progress:
        made = export(found, file.absolute(), version=__version__, progress=progress)
    if as_json:
        write_json(answer(made))
    else:
        _print(made)
    return 1 if made.statement.left_out else 0


def answer(made: Exported) -> dict[str, Any]:
    """The JSON of an export."""
    said = made.statement
    return {
        "run": said.run,
        "path": str(made.path),
        "size": made.bytes,
        "entries": said.entries,
        "files": said.files,
        "bytes": said.bytes,
        "left_out": [msgspec.structs.asdict(one) for one in said.left_out],
        "parents": list(said.parents),
    }


def _print(made: Exported) -> None:
    said = made.statement
    click.echo(f"run {said.run}: {said.files} files, {bytes_of(said.bytes)}")
    click.echo(f"  {made.path}, {bytes_of(made.bytes)}")
    for one in said.left_out:
        click.echo(f"left out: {one.what} {harmless(one.name)}: {harmless(one.problem)}")
    for parent in said.parents:
        click.echo(f"the journal of run {parent}, from which it was forked, is not in it")
