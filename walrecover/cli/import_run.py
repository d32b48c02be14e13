"""`walrecover import`: a run brought back from an archive."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import msgspec

from walrecover.cli.options import as_json, directory, journal_dir
from walrecover.cli.output import harmless, progress_of, write_json
from walrecover.importing import bring_back
from walrecover.rundir import find_root


@click.command(
    "import",
    help="Bring a run back from FILE, which 'walrecover export' wrote. Everything is checked and "
    "read back before the run is there; an archive that is not whole is refused.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="The run's name here [default: the one it had].")
@directory
@journal_dir
@as_json
def command(
    file: Path, name: str | None, directory: str | None, journal_dir: str | None, as_json: bool
) -> int:
    journal = Path(journal_dir).absolute() if journal_dir else None
    with progress_of("import") as progress:
        made = bring_back(
            file.absolute(), find_root(directory), name=name, journal=journal, progress=progress
        )
    run, said = made
    if as_json:
        write_json(
            {
                "run": run.name,
                "path": str(run.path),
                "exported_as": said.run,
                "entries": said.entries,
                "left_out": [msgspec.structs.asdict(one) for one in said.left_out],
                "parents": list(said.parents),
            }
        )
        return 0
    was = "" if said.run == run.name else f", exported as {said.run}"
    click.echo(f"run {run.name}: brought back and verified{was}")
    click.echo(f"  {run.path}")
    for one in said.left_out:
        click.echo(f"not in the archive: {one.what} {harmless(one.name)}: {harmless(one.problem)}")
    there = "" if run.root == find_root(None) else f"--dir {shlex.quote(str(run.root))} "
    click.echo(f"go on with: walrecover run {there}--name {run.name} -- python train.py")
    return 0
