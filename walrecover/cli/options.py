"""Options that several commands share, and how a run is found from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from walrecover.errors import BadInput
from walrecover.rundir import RunDir, find_root, list_runs, open_run

F = TypeVar("F", bound=Callable[..., Any])

directory = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    envvar="WALRECOVER_DIR",
    help="The .walrecover directory [default: ./.walrecover].",
)
journal_dir = click.option(
    "--journal-dir",
    metavar="DIR",
    envvar="WALRECOVER_JOURNAL_DIR",
    help="Where journals lie, if not in the run directory: node-local storage.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def run_argument(function: F) -> F:
    return click.argument("run", required=False)(function)


def resolve(name: str | None, directory: str | None, journal: str | None = None) -> RunDir:
    """The named run, or the newest of the directory. Raises BadInput."""
    root = find_root(directory)
    if name is None:
        known = list_runs(root)
        if not known:
            raise BadInput(
                f"no runs in {root}: start one with 'walrecover run -- python train.py', or give "
                f"the directory with --dir"
            )
        name = known[0]
    return open_run(root, name, Path(journal).absolute() if journal else None)
