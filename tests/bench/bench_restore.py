"""Restoring 430 MB after a SIGKILL, from the arena of the attempt before and from disk, beside one
memcpy of the same bytes in the same process. Every round is a death and a new process.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.bench.measure import Row, as_installed, at_most, sample, show
from tests.support.waiting import wait_until
from walrecover import events
from walrecover.processes import become_subreaper, identity
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir
from walrecover.saver import offers, roll

ROUNDS = 7
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "restored.py"


class Rounds:
    """Attempts of one run, by turns one that trains and dies, and one that is restored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = RunDir(folder / ".walrecover", "bench")
        mine = identity()
        self._environ = {
            **as_installed(folder / "bytecode"),
            "PYTHONPATH": str(ROOT),
            "WALRECOVER_EVERY": "1000steps",
            "WALRECOVER_MEMORY_EVERY": "1step",
            "WALRECOVER_SUPERVISOR": f"{mine.pid}:{mine.started!r}:aa",
        }

    def once(self, *, from_memory: bool) -> dict[str, list[float]]:
        self._attempt(dies=True)
        savers = self._settled()
        if not from_memory:
            for pid in savers:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self._savers())
        took = self._attempt(dies=False)
        how = [e for _, e in read_events(self._run, "rank-0") if isinstance(e, events.Resumed)][-1]
        assert bool(how.arena) is from_memory and bool(how.disk) is not from_memory, how
        return took

    def _attempt(self, *, dies: bool) -> dict[str, list[float]]:
        result = self._folder / "result"
        line = [sys.executable, str(SCRIPT), *([] if dies else [str(result)])]
        ended = subprocess.run(
            line, cwd=self._folder, env=self._environ, capture_output=True, check=False
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        return {} if dies else json.loads(result.read_text())

    def _settled(self) -> set[int]:
        def settled() -> bool:
            found = self._savers()
            return found == offers.settled(self._run, found)

        wait_until(settled)
        return self._savers()

    def _savers(self) -> set[int]:
        return roll.of_run(self._run, psutil.pids)


def rows() -> list[Row]:
    become_subreaper()
    found: dict[bool, list[dict[str, list[float]]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as name:
        rounds = Rounds(Path(name))
        for _ in range(ROUNDS):  # in turn, so that a drift meets both
            for from_memory in (True, False):
                found[from_memory].append(rounds.once(from_memory=from_memory))
    copy = sample([statistics.median(took["memcpy"]) for took in found[True] + found[False]])
    table = []
    for what, from_memory, bound in (("memory", True, 2.0), ("disk", False, None)):
        taken = found[from_memory]
        whole = sample([took["read"][0] + took["applied"][0] for took in taken])
        name = f"430 MB restored from {what}, beside one memcpy"
        if bound:
            table.append(at_most(name, whole, copy, bound))
        else:
            table.append(Row(name, str(whole), str(copy), whole.median / copy.median, "", None))
        for part, text in (("read", "taken and checked"), ("applied", "into the objects")):
            one = sample([took[part][0] for took in taken])
            table.append(Row(f"… {text}", str(one), str(copy), one.median / copy.median, "", None))
        again = sample([took["applied"][1] for took in taken])
        ratio = again.median / copy.median
        table.append(Row("… once more, in its loop", str(again), str(copy), ratio, "", None))
    return table


if __name__ == "__main__":
    raise SystemExit(not show("A restore", rows()))
