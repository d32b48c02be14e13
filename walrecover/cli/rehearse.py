"""`walrecover rehearse`: options in, the rehearsal out."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from walrecover.cli.options import as_json


@click.command(
    "rehearse",
    context_settings={"allow_interspersed_args": False},
    help="Rehearse the crash with your own script: run it undisturbed, then again under SIGKILLs, "
    "and compare the final state bit for bit and the journals step by step. Exit code 0 only if "
    "they are identical and every kill landed while the script trained, a fifth of them inside a "
    "snapshot. Your own runs are not touched; files that the script writes are written twice.",
)
@click.option(
    "--kills", type=click.IntRange(min=1), default=3, show_default=True, help="How many SIGKILLs."
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="What the kills are drawn from [default: at random]."
)
@click.option(
    "--every",
    metavar="PACE",
    help="Time or steps between snapshots [default: several for each kill].",
)
@click.option(
    "--memory-every",
    metavar="STEPS",
    help="Also keep a capture in memory every so many steps (1step, 10steps), as `walrecover run` "
    "does.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep both runs in this directory, which must be empty.",
)
@click.option(
    "--determinism",
    is_flag=True,
    help="Run it undisturbed twice first: whether it is the same by itself, and if not, which step "
    "and quantity differ first, and what usually makes them.",
)
@click.option(
    "--page",
    is_flag=True,
    help="Keep both runs, and serve the status page of the killed one in the background, for 30 "
    "minutes.",
)
@as_json
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
def command(
    kills: int,
    seed: int | None,
    every: str | None,
    memory_every: str | None,
    keep: Path | None,
    determinism: bool,
    page: bool,
    as_json: bool,
    cmd: tuple[str, ...],
) -> int:
    from walrecover.rehearse import rehearse

    drawn = secrets.randbelow(1 << 32) if seed is None else seed
    return rehearse(
        cmd,
        kills=kills,
        seed=drawn,
        every=every,
        memory_every=memory_every,
        keep=keep,
        determinism=determinism,
        page=page,
        json=as_json,
    )
