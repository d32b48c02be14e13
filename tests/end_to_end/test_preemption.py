"""A cluster takes the machine away: its early warning is a stop, and what follows is what was asked
for. Slurm is the environment of a job here, and a `scontrol` that says what it got.
"""

from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from walrecover.rundir import RunDir

from .test_supervisor import LISTENER, Start, notes, run, script, start

__all__ = ["run", "script", "start"]

Script = Callable[[str], list[str]]
USR1 = int(signal.SIGUSR1)
JOB = {"SLURM_JOB_ID": "4711"}


def preempted(
    start: Start, command: list[str], number: int, how: str | None = None, **environ: str
) -> tuple[int, str]:
    supervised = start(
        *command,
        options={"notice": USR1, "on_preempt": how},
        env=_outside_slurm() | environ,
    )
    assert supervised.line() == "up"
    supervised.send(number)
    assert supervised.line() == "SIGTERM"
    return supervised.end(60)


def _outside_slurm() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}


def test_the_early_warning_is_a_stop_and_reaches_the_command_as_term(
    start: Start, script: Script, run: RunDir
) -> None:
    code, said = preempted(start, script(LISTENER), USR1)
    assert code == 5  # the command's own
    assert "asked to stop" in said
    assert notes(run)[0][-2].cause == "preempted"
    assert len(notes(run)) == 1  # no restart


@pytest.mark.parametrize("number", [USR1, int(signal.SIGTERM)])
def test_where_asked_the_exit_code_says_run_me_again(
    start: Start, script: Script, number: int
) -> None:
    assert preempted(start, script(LISTENER), number, "again")[0] == 75


def test_a_command_that_came_to_its_end_is_not_run_again(start: Start, script: Script) -> None:
    code, _ = preempted(
        start, script(LISTENER.replace("sys.exit(5)", "sys.exit(0)")), USR1, "again"
    )
    assert code == 0


def test_under_slurm_it_stays_until_it_is_ended(start: Start, script: Script) -> None:
    supervised = start(*script(LISTENER), options={"notice": USR1}, env=_outside_slurm() | JOB)
    assert supervised.line() == "up"
    supervised.send(USR1)
    assert supervised.line() == "SIGTERM"
    assert supervised.process.stderr
    for line in supervised.process.stderr:
        if "staying until the job is ended" in line:
            break
    fd = os.pidfd_open(supervised.pid)
    assert not select.select([fd], [], [], 0.5)[0]
    os.close(fd)
    supervised.send(signal.SIGTERM)  # a further one ends it
    assert supervised.end()[0] == 5


def test_a_job_is_requeued(start: Start, script: Script, tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nkill -KILL $PPID\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    code, _ = preempted(start, script(LISTENER), USR1, "requeue", PATH=path, **JOB)
    assert code == -signal.SIGKILL  # as Slurm ends a job that it queues again
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


def test_a_job_that_cannot_be_requeued_says_run_me_again(start: Start, script: Script) -> None:
    code, said = preempted(start, script(LISTENER), USR1, "requeue")
    assert code == 75
    assert "cannot requeue: SLURM_JOB_ID is not set" in said


def test_the_command_is_told_of_grace_and_signal(start: Start, script: Script) -> None:
    code = """
        import os
        print(os.environ["WALRECOVER_GRACE"], os.environ["WALRECOVER_PREEMPT_SIGNAL"])
    """
    supervised = start(*script(code), options={"grace": 25.0, "notice": USR1})
    assert supervised.line() == "25s SIGUSR1"
    assert supervised.end()[0] == 0
