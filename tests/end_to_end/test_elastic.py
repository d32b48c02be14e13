"""Runs whose number of ranks changes from attempt to attempt: what was saved by some goes on with
others, or is refused by name and goes on with as many as before.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempt import KILL
from tests.support.forkserver import ROOT, ForkServer
from tests.support.trial import KILLED, Ended, Trial
from walrecover import entries, events
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

from .scripts import resized

TERM = int(signal.SIGTERM)
End = tuple[int, str, int]


class Elastic:
    """A run in one folder. `trained` is the file in which each rank notes its samples."""

    def __init__(self, server: ForkServer, folder: Path, **env: str) -> None:
        self.server, self.folder, self.env = server, folder, env
        self.attempts = 0
        self.trained = folder / "trained"

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
            given |= {"trained": str(self.trained), "attempt": self.attempts}
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

    def steps(self) -> dict[int, set[tuple[float, frozenset[int]]]]:
        """For each step the different ways in which it was made: its learning rate, and the samples
        of all ranks together. What a kill cut short is left out."""
        made: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for line in self.trained.read_text().splitlines():
            attempt, step, lr, *ids = line.split()
            made[attempt, step, lr] += map(int, ids)
        found = defaultdict(set)
        for (_, step, lr), ids in made.items():
            if len(ids) == resized.BATCH:
                found[int(step)].add((float(lr), frozenset(ids)))
        return dict(found)

    def show(self, *options: str) -> str:
        """What `walrecover show` prints."""
        command = [sys.executable, "-m", "walrecover.cli", "show", *options]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.check_output(command, cwd=self.folder, env=env, text=True)

    def saved(self) -> dict[str, bytes]:
        """Every byte of the run's snapshots."""
        return {str(p): p.read_bytes() for p in self.directory.snapshots.rglob("*") if p.is_file()}


Make = Callable[..., Elastic]


@pytest.fixture
def elastic(server: ForkServer, folder: Path) -> Make:
    def make(**env: str) -> Elastic:
        where = folder / f"{len(list(folder.iterdir()))}"
        where.mkdir()
        return Elastic(server, where, **env)

    return make


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Elastic:
    whole = Elastic(server, tmp_path_factory.mktemp("undisturbed"))
    assert whole.run(1)[0].status == 0
    return whole


def test_other_numbers_of_ranks_make_the_same_steps(elastic: Make, undisturbed: Elastic) -> None:
    run = elastic(WALRECOVER_EVERY="2steps")
    worlds = (2, 1, 3, 2)
    for world in worlds[:-1]:
        ended = run.run(world, {world - 1: (3, "boundary", KILL)})
        assert ended[-1].status == KILLED, ended
    assert [e.status for e in run.run(worlds[-1])] == [0, 0]
    assert run.steps() == undisturbed.steps()
    assert {len(ways) for ways in run.steps().values()} == {1}
    assert max(run.steps()) == 12

    by_world = defaultdict(set)
    for event in run.resumed():
        by_world[event.saved_by].add(event.source)
    assert dict(by_world) == {0: {0}, 2: {0}, 1: {0}, 3: {0, 1}}
    assert run.commits()[-1].end

    shown = run.show()
    assert [a["ranks"] for a in json.loads(run.show("--json"))["attempts"]] == [2, 1, 3, 2]
    for line in ("from 2 to 1 ranks", "from 1 to 3 ranks", "from 3 to 2 ranks"):
        assert f"→ resized   {line}; drawn anew on each: " in shown
    plans = [entry.plan for entry in entries.attempts(Sequence(run.directory.sequence).read())]
    assert [plan.ranks for plan in plans] == [0, 2, 1, 3]


def test_what_is_drawn_anew_is_another_for_each_rank_and_the_same_for_each_try(
    elastic: Make,
) -> None:
    run = elastic(WALRECOVER_EVERY="1000steps")
    assert run.run(2, {0: (3, "step", TERM)})[0].status == 128 + TERM
    parts = json.loads(next(run.directory.snapshots.glob("*/manifest.json")).read_text())["parts"]
    means = [part["tensors"]["model.1.running_mean"]["digest"] for part in parts]
    assert means[0] != means[1]
    for _ in range(2):
        ended = run.run(3, {1: (1, "step", KILL)})
        assert ended[1].status == KILLED, ended
        said = ended[0].output
        assert "since the snapshot world was 2, is 3" in said
        assert "2 ranks saved, 3 ranks go on; drawn anew on each rank: torch" in said
        assert "the buffers of model are rank 0's, as DDP has it" in said
        for one in ended:
            assert f"restored the mean {means[0]}" in one.output
    first, second = run.resumed()[2:5], run.resumed()[5:8]
    assert [event.drawn_anew for event in first] == [event.drawn_anew for event in second]
    assert [list(event.drawn_anew) for event in first] == [["torch"]] * 3
    assert len({event.drawn_anew["torch"] for event in first}) == 3


def test_a_loader_of_each_ranks_own_is_refused_in_the_middle_and_not_at_the_end_of_an_epoch(
    elastic: Make,
) -> None:
    run = elastic(WALRECOVER_EVERY="3steps")
    assert run.run(2, {1: (4, "step", KILL)}, foreign=True)[1].status == KILLED
    before = run.saved()
    for world in (1, 3):
        for status, output in run.run(world, foreign=True):
            assert status == 1
            assert f"the snapshot was taken by 2 ranks, and there are {world} now" in output
            assert "DataLoader with DistributedSampler stands at item 3 of 4" in output
            assert "start 2 ranks as before" in output
    assert run.saved() == before

    often = {"WALRECOVER_EVERY": "4steps"}
    assert run.run(2, {1: (2, "step", KILL)}, often, foreign=True)[1].status == KILLED
    assert run.commits()[-1].step == 4  # an epoch
    assert run.run(1, foreign=True)[0].status == 0
    assert max(run.steps()) == 12


def test_a_value_of_each_ranks_own_is_refused_or_taken_from_one_by_order(elastic: Make) -> None:
    run = elastic()
    assert run.run(2, {1: (3, "boundary", KILL)}, own=True)[1].status == KILLED
    before = run.saved()
    refused = run.run(1, own=True)[0]
    assert refused.status == 1
    assert "each rank has its own own.rank (0 on rank 0, 1 on rank 1)" in refused.output
    assert "WALRECOVER_TAKE_RANK=0:own" in refused.output
    assert run.saved() == before
    ordered = run.run(1, env={"WALRECOVER_TAKE_RANK": "0:own"}, own=True)[0]
    assert ordered.status == 0, ordered.output
    assert "repaired: every rank has own of rank 0" in ordered.output
    assert max(run.steps()) == 12
