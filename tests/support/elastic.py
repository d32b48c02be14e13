"""A run whose number of ranks changes from attempt to attempt, over gloo and without a launcher.

Owns starting its attempts and reading what they leave.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.end_to_end.scripts import resized
from tests.support import trained
from tests.support.forkserver import ROOT, ForkServer
from tests.support.trial import KILLED, Ended, Trial
from tests.support.waiting import await_savers
from walrecover import entries, events
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

TERM = int(signal.SIGTERM)
End = tuple[int, str, int]


class Elastic:
    """One run of `scripts/resized.py`. `ids` is the file in which each rank notes its samples."""

    def __init__(self, server: ForkServer, folder: Path, **env: str) -> None:
        self.server, self.folder, self.env = server, folder, env
        self.attempts = 0
        self.ids = folder / "ids"

    def run(
        self,
        world: int,
        ends: dict[int, End] | None = None,
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[Ended]:
        """One attempt of so many ranks. As launchers do it, those whose peer was killed are told to
        stop."""
        self.attempts += 1
        store = str(self.folder / f"store-{self.attempts}")
        ranks, children = [], []
        for n in range(world):
            rank = Trial(self.server, self.folder, "resized:training", self.env)
            rank.attempts = 10 * self.attempts + n
            ranks.append(rank)
            given = {"store": store, "rank": n, "world": world}
            given |= {"ids": str(self.ids)}
            names = {"log": f"steps-{n}", "result": str(self.folder / f"result-{n}")}
            children.append(rank.start((ends or {}).get(n), env, **(names | given | arguments)))
        status = {}
        for n in sorted(
            range(world), key=lambda n: n not in (ends or {})
        ):  # who is hit comes first
            status[n] = children[n].wait()
            if status[n] == KILLED:
                for other in set(range(world)) - set(status):
                    os.kill(children[other].pid, TERM)
        await_savers(self.folder)
        outputs = [(self.folder / f"output-{rank.attempts}").read_text() for rank in ranks]
        return [Ended(status[n], outputs[n]) for n in range(world)]

    @property
    def directory(self) -> RunDir:
        root = self.folder / ".walrecover"
        (name,) = list_runs(root)
        return RunDir(root, name)

    def commits(self) -> list[entries.SnapshotRef]:
        found = Sequence(self.directory.sequence).read()
        return [commit.snapshot for commit in entries.commits(found)]

    def resumed(self) -> list[events.Resumed]:
        found = read_events(self.directory, "rank-")
        return [event for _, event in found if isinstance(event, events.Resumed)]

    def samples(self) -> dict[int, set[frozenset[int]]]:
        """For each step the different ways in which it was made: the samples of all ranks together.
        What a kill cut short is left out."""
        found: dict[int, set[frozenset[int]]] = {}
        for step, attempts in trained.executions(self.directory, self.ids).items():
            ways = [[n for ids in ranks.values() for n in ids] for ranks in attempts.values()]
            found[step] = {frozenset(ids) for ids in ways if len(ids) == resized.BATCH}
        return found

    def learning_rates(self) -> dict[int, set[tuple[float, ...]]]:
        """For each step those of all its executions, by all ranks."""
        found = defaultdict(set)
        for _, event in read_events(self.directory, "rank-"):
            if isinstance(event, events.StepCompleted):
                found[event.step].add(event.lr)
        return dict(found)

    def show(self, *options: str) -> str:
        """What `walrecover show` prints."""
        command = [sys.executable, "-m", "walrecover.cli", "show", *options]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.check_output(command, cwd=self.folder, env=env, text=True)

    def saved(self) -> dict[str, bytes]:
        """Every byte of the run's snapshots."""
        return {str(p): p.read_bytes() for p in self.directory.snapshots.rglob("*") if p.is_file()}
