"""`walrecover run`: options in, the supervisor out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from walrecover import hangs, pace, stops
from walrecover.cli.options import directory, journal_dir
from walrecover.cli.policy import load, policy_option
from walrecover.cli.preflight import preflight
from walrecover.errors import BadInput
from walrecover.rundir import RunDir, check_name, default_name, find_root

if TYPE_CHECKING:
    from walrecover.supervisor.standby import Kind


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    help="Supervise a training command: restart it when it dies, resume it where it stood. The "
    "exit code is the command's.",
)
@click.option("--name", metavar="RUN", envvar="WALRECOVER_RUN", help="The run's name.")
@directory
@journal_dir
@click.option(
    "--every",
    metavar="PACE",
    help="Time or steps between snapshots: 30s, 5m, 100steps, or auto: 30s until the run has "
    "failed, then what loses least [default: 30s].",
)
@click.option(
    "--memory-every",
    metavar="STEPS",
    help="Also keep a capture in memory every so many steps (1step, 10steps), which is saved when "
    "the process is killed.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    envvar="WALRECOVER_MAX_RESTARTS",
    help="Restarts in a row without a new step in between [default: 3].",
)
@click.option(
    "--backoff",
    type=click.FloatRange(min=0),
    envvar="WALRECOVER_BACKOFF",
    help="Seconds before the second restart in a row; doubles with each [default: 1].",
)
@policy_option
@click.option(
    "--resume",
    type=click.Choice(["auto", "must", "never"]),
    envvar="WALRECOVER_RESUME",
    default="auto",
    show_default=True,
    help="Resume if there is a snapshot; insist on one; or start over.",
)
@click.option(
    "--grace",
    metavar="TIME",
    envvar=stops.GRACE,
    default="60s",
    show_default=True,
    help="Between a stop signal and SIGKILL; a snapshot that cannot be done by then is not begun.",
)
@click.option(
    "--preempt-signal",
    metavar="SIGNAL",
    envvar=stops.PREEMPT_SIGNAL,
    default="USR1",
    show_default=True,
    help="A cluster's early warning, taken as SIGTERM is: USR1, USR2, TERM or none.",
)
@click.option(
    "--on-preempt",
    type=click.Choice(stops.AFTERWARDS),
    envvar=stops.ON_PREEMPT,
    help="Once a preempted command has saved and ended: exit with its code; stay until the job is "
    "ended; have Slurm requeue it; exit with 75, again [default: stay under Slurm, else exit].",
)
@click.option(
    "--hang-timeout",
    metavar="LIMIT",
    envvar="WALRECOVER_HANG_TIMEOUT",
    help="How long a rank may stand still: auto (learned), off, 10m, or by phase: "
    "step=10m,snapshot=1h [default: as the policy says, else auto].",
)
@click.option(
    "--standby",
    type=click.Choice(["off", "imported", "parked"]),
    envvar="WALRECOVER_STANDBY",
    default="imported",
    show_default=True,
    help="What stands ready for a restart of a Python script: nothing; a process that has imported "
    "what the script imports; or one that has run it up to attach(), whose top half then runs "
    "twice.",
)
@click.option("--no-preflight", is_flag=True, help="Do not look at storage and port beforehand.")
@click.option(
    "--adopt",
    multiple=True,
    metavar="PATTERN",
    help="Check and protect the checkpoint files that the script itself writes: 'out/**/*.pt'.",
)
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
def command(
    name: str | None,
    directory: str | None,
    journal_dir: str | None,
    every: str | None,
    memory_every: str | None,
    max_restarts: int | None,
    backoff: float | None,
    policy: str | None,
    resume: str,
    grace: str,
    preempt_signal: str,
    on_preempt: str | None,
    hang_timeout: str | None,
    standby: Kind,
    no_preflight: bool,
    adopt: tuple[str, ...],
    cmd: tuple[str, ...],
) -> int:
    from walrecover.supervisor import supervise
    from walrecover.supervisor.child import Command, Unusable

    if every is not None:
        pace.parse(every)
    if memory_every is not None:
        pace.parse_memory(memory_every)
    limits = None if hang_timeout is None else hangs.parse(hang_timeout)
    chosen = check_name(name) if name else name_of_command(list(cmd))
    journal = Path(journal_dir).absolute() if journal_dir else None
    run = RunDir(find_root(directory), chosen, journal)
    found = load(policy)
    treated = found.policy(max_restarts, backoff)
    if limits is None and found.hang_timeout is not None:
        limits = found.hang_timeout.limits
    try:
        if not no_preflight:
            Command.find(cmd, os.environ)  # 126 and 127 come before anything is tried
            preflight(run, cmd)
        return supervise(
            cmd,
            run,
            treated,
            every=every,
            memory_every=memory_every,
            resume=resume,
            grace=stops.seconds(grace),
            limits=limits,
            notice=stops.notice(preempt_signal),
            on_preempt=on_preempt,
            standby=standby,
            adopt=adopt,
        )
    except Unusable as error:
        print(f"walrecover: {error}", file=sys.stderr)
        return error.exit_code


def name_of_command(cmd: list[str]) -> str:
    """The name that the script would give itself: by directory, script and its arguments."""
    if not cmd:
        raise BadInput("no command: walrecover run -- python train.py")
    for place, word in enumerate(cmd):
        if word.endswith(".py") and os.path.exists(word):
            return default_name(os.getcwd(), os.path.abspath(word), cmd[place + 1 :])
    return default_name(os.getcwd(), cmd[0], cmd[1:])
