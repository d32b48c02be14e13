"""`walrecover export`: a run as one portable file, or its copy in a vault kept up."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from walrecover import __version__
from walrecover.cli.options import as_json, directory, journal_dir, resolve
from walrecover.cli.output import bytes_of, harmless, progress_of, write_json
from walrecover.errors import BadInput, StorageFailed
from walrecover.exporting import Exported, export
from walrecover.mirroring import Mirrored, keep_up
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.vaults import SCHEME, Vault

FOLLOW_SECONDS = 5.0


@click.command(
    "export",
    help="Write RUN into the file TARGET (tar, zstd), with sums that sha256sum checks; or, where "
    "TARGET is a directory or s3://bucket/prefix, keep up a copy of RUN there. RUN may go on. "
    "What does not verify is left out and named: exit code 1.",
)
@click.argument("run")
@click.argument("target")
@click.option("--follow", is_flag=True, help="With a directory or bucket: go on until RUN ends.")
@directory
@journal_dir
@as_json
def command(
    run: str,
    target: str,
    follow: bool,
    directory: str | None,
    journal_dir: str | None,
    as_json: bool,
) -> int:
    found = resolve(run, directory, journal_dir)
    if target.startswith(SCHEME) or target.endswith("/") or Path(target).is_dir():
        return _keep_up(found, Vault(target), follow, as_json)
    if follow:
        raise BadInput("--follow keeps up a copy: give a directory or s3://bucket/prefix")
    with progress_of("export") as progress:
        made = export(found, Path(target).absolute(), version=__version__, progress=progress)
    if as_json:
        write_json(answer(made))
    else:
        _print(made)
    return 1 if made.statement.left_out else 0


def _keep_up(run: RunDir, vault: Vault, follow: bool, as_json: bool) -> int:
    """One turn, or turns until the run has ended; what the storage refuses is tried again then."""
    reached = 0
    while True:
        if reached and len(Sequence(run.sequence).read()) == reached:
            time.sleep(FOLLOW_SECONDS)
            continue
        try:
            done = keep_up(run, vault)
        except StorageFailed as error:
            if not follow:
                raise
            print(f"walrecover: {error}; it is tried again", file=sys.stderr)
            time.sleep(FOLLOW_SECONDS)
            continue
        _say(run, vault, done, as_json)
        if not follow or done.finished:
            return 1 if done.damaged else 0
        reached = done.entries


def _say(run: RunDir, vault: Vault, done: Mirrored, as_json: bool) -> None:
    if as_json:
        body = done._asdict() | {"damaged": [one._asdict() for one in done.damaged]}
        write_json({"run": run.name, "vault": vault.where, **body})
        return
    click.echo(
        f"run {run.name}: up to entry {done.entries} in {vault.where} "
        f"({done.sent} objects, {bytes_of(done.bytes)} sent, {done.deleted} deleted)"
    )
    for one in done.damaged:
        click.echo(f"not sent: {one.name} does not verify: {harmless(one.problem or '')}")


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
