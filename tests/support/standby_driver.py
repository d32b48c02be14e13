"""A supervisor reduced to its standbys: starts one, spoils it if so told, promotes it.

    python -m tests.support.standby_driver FOLDER SCENARIO

The attempt that goes on meanwhile is played: a process that sleeps, with a journal that says what
it imported. The command's output is the driver's own; the last line on stdout is a JSON object.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until
from walrecover import processes
from walrecover.beats import Beat
from walrecover.entries import AttemptEntry, Holder, Plan
from walrecover.events import AttemptBegun, ModulesImported
from walrecover.journal import Journal
from walrecover.rundir import RunDir
from walrecover.supervisor import handover
from walrecover.supervisor.child import Child, Command, start
from walrecover.supervisor.signals import Signals
from walrecover.supervisor.standby import Standbys

DEADLINE_SECONDS = 120.0


def entry(number: int) -> AttemptEntry:
    holder = Holder(host="", boot="", pid=os.getpid(), started=1.0, supervisor="driver")
    return AttemptEntry(
        id=str(number), number=number, nonce="0" * 8, at=0.0, holder=holder, plan=Plan()
    )


def play_attempt(run: RunDir, pid: int, scenario: dict[str, Any]) -> None:
    """An attempt that has completed its first step, in this process."""
    folder = run.meeting(1, "0" * 8)
    folder.mkdir(parents=True)
    Beat(folder, 0).say("training", 1)
    first = AttemptBegun(run="run", attempt=1, nonce="0" * 8, writer="rank-0", rank=0, pid=pid)
    with closing(Journal.create(run.stream(1, "0" * 8, "rank-0"), attempt=1, first=first)) as own:
        own.append(ModulesImported(
            names=tuple(scenario.get("names", ())),
            environment=tuple(scenario.get("environment", ())),
        ))  # fmt: skip


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def wait_ready(standbys: Standbys, command: Command, worker: Child) -> int | None:
    """The pid of a standby that waits; None where there is none to come."""

    def settled() -> bool:
        processes.reap(standbys.apart(worker.note_end))
        standbys.look(command, worker)
        if standbys.pid is None:
            return standbys.seconds_to_look() > DEADLINE_SECONDS
        return name_of(standbys.pid) == "walrecover-wait"

    wait_until(settled, DEADLINE_SECONDS, pause=0.01)
    return standbys.pid


def spoil(what: str, pid: int) -> None:
    if what == "kill":
        os.kill(pid, signal.SIGKILL)
    elif what == "stop":
        os.kill(pid, signal.SIGSTOP)
    elif what == "abandon":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what.startswith("touch "):
        os.utime(what.removeprefix("touch "), (1, 1))


def wait_end(child: Child, standbys: Standbys) -> None:
    fd = os.pidfd_open(child.pid)
    try:
        assert select.select([fd], [], [], DEADLINE_SECONDS)[0]
    finally:
        os.close(fd)
    while child.ending is None:
        processes.reap(standbys.apart(child.note_end))


def main() -> None:
    folder, scenario = Path(sys.argv[1]), json.loads(sys.argv[2])
    run = RunDir(folder / ".walrecover", "run")
    run.create()
    found = Command.find(scenario["command"], os.environ).told(handover.of_run(run, None))
    processes.become_subreaper()
    kind = scenario.get("kind", "imported")
    with Signals() as signals, closing(Standbys(kind, found.argv, run, signals)) as standbys:
        sleeper = Command.find([sys.executable, "-c", "import time; time.sleep(600)"], os.environ)
        worker = start(sleeper, signals)
        play_attempt(run, 1 if scenario.get("elsewhere") else worker.pid, scenario)
        standbys.begin(entry(1))
        pid = wait_ready(standbys, found, worker)
        if pid is not None and "spoil" in scenario:
            spoil(scenario["spoil"], pid)
        worker.send(signal.SIGKILL)
        wait_end(worker, standbys)
        second = entry(2)
        told = handover.of_attempt(second, run.meeting(2, "0" * 8), found.environ)
        command = found.told({**told, **scenario.get("environ", {})})
        child, kind = standbys.promote(command) or (start(command, signals), "")
        wait_end(child, standbys)
    result = {"standby": kind, "same": child.pid == pid, "code": child.ending and str(child.ending)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
