"""`walrecover import`: a run brought back from an archive or a vault."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import msgspec

from walrecover.cli.options import as_json, directory, journal_dir
from walrecover.cli.output import harmless, progress_of, write_json
from walrecover.errors import BadInput
from walrecover.importing import bring_back
from walrecover.retrieving import retrieve
from walrecover.rundir import RunDir, find_root
from walrecover.vaults import SCHEME, Vault


@click.command(
    "import",
    help="Bring a run back from SOURCE: a file that 'walrecover export' wrote, or DIRECTORY/RUN or "
    "s3://bucket/prefix/RUN. Everything is checked and read back before the run is there; an "
    "archive that is not whole is refused.",
)
@click.argument("source")
@click.option("--name", metavar="NAME", help="The run's name here [default: the one it had].")
@directory
@journal_dir
@as_json
def command(
    source: str, name: str | None, directory: str | None, journal_dir: str | None, as_json: bool
) -> int:
    journal = Path(journal_dir).absolute() if journal_dir else None
    root = find_root(directory)
    if source.startswith(SCHEME) or Path(source).is_dir():
        return _retrieve(source, root, name, journal, as_json)
    with progress_of("import") as progress:
        file = Path(source).absolute()
        made = bring_back(file, root, name=name, journal=journal, progress=progress)
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
    _print(run, said.run)
    for one in said.left_out:
        click.echo(f"not in the archive: {one.what} {harmless(one.name)}: {harmless(one.problem)}")
    _print_next(run)
    return 0


def _retrieve(
    source: str, root: Path, name: str | None, journal: Path | None, as_json: bool
) -> int:
    if source.startswith(SCHEME) and "/" not in source.removeprefix(SCHEME).strip("/"):
        raise BadInput(f"{source} names no run: give s3://bucket/prefix/RUN")
    where, _, was = source.rstrip("/").rpartition("/")
    done = retrieve(Vault(where or "."), was, root, name=name, journal=journal)
    if as_json:
        write_json(
            {
                "run": done.run.name,
                "path": str(done.run.path),
                "exported_as": was,
                "entries": done.entries,
                "damaged": [one._asdict() for one in done.damaged],
            }
        )
        return 1 if done.damaged else 0
    _print(done.run, was)
    for one in done.damaged:
        click.echo(f"not whole in the vault: {one.name}: {harmless(one.problem or '')}")
    _print_next(done.run)
    return 1 if done.damaged else 0


def _print(run: RunDir, was: str) -> None:
    other = "" if was == run.name else f", exported as {was}"
    click.echo(f"run {run.name}: brought back and verified{other}")
    click.echo(f"  {run.path}")


def _print_next(run: RunDir) -> None:
    there = "" if run.root == find_root(None) else f"--dir {shlex.quote(str(run.root))} "
    click.echo(f"go on with: walrecover run {there}--name {run.name} -- python train.py")
