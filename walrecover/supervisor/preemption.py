"""What follows once a preempted command has ended: leave, stay, have it queued again, or say so.

Owns the end of a preempted `walrecover run`; the command has ended and saved by then. Under Slurm a
job that ends by itself within its grace time counts as finished and is not queued again, whatever
its exit code: it must stay until it is ended, or ask to be requeued.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from walrecover.supervisor.notes import say
from walrecover.supervisor.stopping import Stopping

AGAIN = 75
JOB = "SLURM_JOB_ID"
_LOOK_SECONDS = 2.0
_REQUEUE_SECONDS = 30.0


def leave(how: str | None, exit_code: int, stopping: Stopping, environ: Mapping[str, str]) -> int:
    """The exit code, when it is time to exit. `how`: as `--on-preempt` says; by default `stay` in a
    job of Slurm's, else `exit`. A command that came to its end (0) is done, and nothing follows."""
    job = environ.get(JOB)
    if stopping.cause != "preempted" or exit_code == 0:
        return exit_code
    how = how or ("stay" if job else "exit")
    if how == "again":
        return AGAIN
    if how == "requeue" and not _requeue(job):
        return AGAIN
    if how in ("stay", "requeue"):
        say("staying until the job is ended: a job that exits now counts as finished")
        heard = stopping.times_asked
        while stopping.times_asked == heard and not stopping.hurried:
            stopping.hear(_LOOK_SECONDS)
    return exit_code


def _requeue(job: str | None) -> bool:
    if job is None:
        say(f"cannot requeue: {JOB} is not set, so this is no job of Slurm's")
        return False
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, timeout=_REQUEUE_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"cannot requeue: {error}")
        return False
    say(f"job {job} is queued again")
    return True
