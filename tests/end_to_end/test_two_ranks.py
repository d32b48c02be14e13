"""Two ranks that train together: either may be killed or stopped at any step, and both go on from
the same one. Over gloo and a file, without a launcher; once under torchrun itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempt import KILL
from tests.support.forkserver import ROOT, Child, ForkServer
from tests.support.trial import KILLED, Ended, Trial
from tests.support.waiting import await_savers, wait_until
from walrecover import entries, events
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

TERM = int(signal.SIGTERM)
End = tuple[int, str, int]


class Pair:
    """A run of two ranks. Both are one run in one folder, and keep a log and a result each."""

    def __init__(self, server: ForkServer, folder: Path, script: str, **env: str) -> None:
        self.folder = folder
        self.ranks = [Trial(server, folder, f"ranks:{script}", env) for _ in range(2)]
        self.attempts = 0

    def start(
        self,
        ends: dict[int, End] | None = None,
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[Child]:
        """Begin an attempt of both; `ends` says how which rank is hit."""
        self.attempts += 1
        store = str(self.folder / f"store-{self.attempts}")
        children = []
        for n, rank in enumerate(self.ranks):
            rank.attempts = 2 * self.attempts + n  # their outputs lie in one folder
            end, log = (ends or {}).get(n), f"steps-{n}"
            result = str(self.folder / f"result-{n}")
            given = {"store": store, "rank": n} | arguments
            children.append(rank.start(end, env, log=log, result=result, **given))
        return children

    def run(
        self,
        ends: dict[int, End] | None = None,
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[Ended]:
        """One attempt of both, to its end. As launchers do it, a rank whose peer was killed is told
        to stop."""
        children = self.start(ends, env, **arguments)
        status = {}
        for n in sorted(range(2), key=lambda n: n not in (ends or {})):  # who is hit comes first
            status[n] = children[n].wait()
            if status[n] == KILLED:
                os.kill(children[1 - n].pid, TERM)
        await_savers(self.folder)
        outputs = [(self.folder / f"output-{rank.attempts}").read_text() for rank in self.ranks]
        return [Ended(status[n], outputs[n]) for n in range(2)]

    def lose_one_at_the_end(self, last: int) -> None:
        """The second rank is killed in the last step; the first is told to stop once it has saved
        its part of the end."""
        living, dead = self.start({1: (last, "step", KILL)})
        assert dead.wait() == KILLED
        part = f"*{last}-end*/rank-00000*"
        wait_until(lambda: list(self.directory.snapshots.glob(part)))
        os.kill(living.pid, TERM)
        assert living.wait() == 128 + TERM

    def results(self) -> list[Any]:
        return results(self.folder)

    def losses(self) -> list[dict[int, set[str]]]:
        return [rank.losses(f"steps-{n}") for n, rank in enumerate(self.ranks)]

    @property
    def directory(self) -> RunDir:
        root = self.folder / ".walrecover"
        (name,) = list_runs(root)
        return RunDir(root, name)

    def commits(self) -> list[entries.SnapshotRef]:
        found = Sequence(self.directory.sequence).read()
        return [commit.snapshot for commit in entries.commits(found)]


Make = Callable[..., Pair]


@pytest.fixture
def pair(server: ForkServer, folder: Path) -> Make:
    def make(script: str, **env: str) -> Pair:
        return Pair(server, folder / f"{len(list(folder.iterdir()))}", script, **env)

    return make


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    whole = Pair(server, tmp_path_factory.mktemp("undisturbed"), "training")
    assert [ended.status for ended in whole.run()] == [0, 0]
    return whole


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("k", "where"), [(4, "boundary"), (4, "step")])
def test_either_rank_killed_at_every_kth_step(
    pair: Make, undisturbed: Pair, rank: int, k: int, where: str
) -> None:
    killed = pair("training")
    while (ended := killed.run({rank: (k, where, KILL)}))[rank].status != 0:
        assert ended[rank].status == KILLED
        assert ended[1 - rank].status in (1, 128 + TERM, -TERM), ended
    assert killed.attempts > 3
    assert killed.results() == undisturbed.results()
    assert killed.losses() == undisturbed.losses()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_a_stop_of_one_rank_stops_both_at_the_same_step(
    pair: Make, undisturbed: Pair, rank: int, k: int
) -> None:
    stopped = pair("training", WALRECOVER_EVERY="1000steps")
    while (ended := stopped.run({rank: (k, "step", TERM)}))[rank].status != 0:
        assert [e.status for e in ended] == [128 + TERM, 128 + TERM], ended
        (last,) = {max(losses) for losses in stopped.losses()}  # both have made the same steps
        assert stopped.commits()[-1].step == last
        assert f"step {last} is saved" in ended[0].output
    assert stopped.attempts > 1
    assert stopped.results() == undisturbed.results()
    assert stopped.losses() == undisturbed.losses()


def test_a_rank_that_dies_at_the_end_does_not_hold_the_other(pair: Make, undisturbed: Pair) -> None:
    """The end cannot be committed without its vote; a signal, as launchers send it to those who
    are left, ends the wait."""
    last = pair("training", WALRECOVER_EVERY="4steps")
    steps = max(undisturbed.losses()[0])
    first, second = last.start({1: (steps, "boundary", KILL)})
    assert second.wait() == KILLED
    os.kill(first.pid, TERM)
    assert first.wait(20) == 128 + TERM
    assert last.commits()[-1].step < steps
    assert [e.status for e in last.run()] == [0, 0]
    assert last.results() == undisturbed.results()


def saved(pair: Pair) -> dict[str, bytes]:
    """Every byte of the run's snapshots."""
    root = pair.folder / ".walrecover"
    return {str(path): path.read_bytes() for path in root.rglob("snapshots/*/*")}


def repairs(pair: Pair) -> list[events.StateRepaired]:
    root = pair.folder / ".walrecover"
    run = RunDir(root, list_runs(root)[0])
    return [e for _, e in read_events(run, "rank-") if isinstance(e, events.StateRepaired)]


def test_step_counts_that_disagree_are_refused_and_repaired_by_order(pair: Make) -> None:
    skipping = pair("by_hand", WALRECOVER_EVERY="1000steps", WALRECOVER_KEEP="9")
    stopped = skipping.run({0: (3, "step", TERM)}, skips=2)
    assert [e.status for e in stopped] == [128 + TERM, 128 + TERM], stopped
    last = skipping.commits()[-1]
    counts = f"optimizer: {last.step} steps on rank 0, {last.step - 1} on rank 1"

    before = saved(skipping)
    refused = skipping.run()
    assert [e.status for e in refused] == [1, 1], refused
    for ended in refused:
        assert counts in ended.output
        assert "WALRECOVER_TAKE_RANK=0:optimizer,model gives every rank" in ended.output
    assert saved(skipping) == before
    assert skipping.commits()[-1] == last

    named = skipping.run(env={"WALRECOVER_TAKE_RANK": "0:scheduler"})
    assert "names scheduler, which is not attached (model, optimizer)" in named[0].output

    ordered = {"WALRECOVER_TAKE_RANK": "0:optimizer,model"}
    again = skipping.run({0: (2, "step", TERM)}, env=ordered)
    assert [e.status for e in again] == [128 + TERM, 128 + TERM], again
    assert f"repaired: every rank has optimizer, model of rank 0 ({counts})" in again[0].output
    assert {path: data for path, data in saved(skipping).items() if path in before} == before
    assert {(e.step, e.names, e.from_rank) for e in repairs(skipping)} == {
        (last.step, ("optimizer", "model"), 0)
    }
    assert [e.reason for e in repairs(skipping)] == [counts, counts]

    ended = skipping.run(env=ordered)  # an order that is left standing repairs nothing twice
    assert [e.status for e in ended] == [0, 0], ended
    assert "repaired" not in ended[0].output
    first, second = skipping.results()
    assert (first["model"], first["optimizer"]) == (second["model"], second["optimizer"])


def test_the_difference_of_two_ranks_is_said_rank_by_rank(pair: Make) -> None:
    skipping = pair("by_hand", WALRECOVER_EVERY="4steps", WALRECOVER_KEEP="9")
    assert [e.status for e in skipping.run(skips=6)] == [0, 0]
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "diff", "@4", "@8", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=skipping.folder,
        timeout=180,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["differences"]
    counts = {(d["rank"], d["a"], d["b"]) for d in found if d["kind"] == "step"}
    assert counts == {(0, "4.0", "8.0"), (1, "4.0", "7.0")}
    assert {d["rank"] for d in found if d["kind"] == "tensor"} == {0, 1}


def test_ranks_of_their_own_counts_go_on_where_it_need_not_all_fit(pair: Make) -> None:
    own = pair("by_hand", WALRECOVER_EVERY="1000steps")
    assert own.run({0: (3, "step", TERM)}, skips=2)[0].status == 128 + TERM
    ended = own.run(strict=False)
    assert [e.status for e in ended] == [0, 0], ended
    assert "not restored: step counts that agree: optimizer: " in ended[0].output
    first, second = own.results()
    assert first["optimizer"] != second["optimizer"]


def test_a_parameter_that_lags_on_one_rank_is_in_order(pair: Make) -> None:
    lagging = pair("by_hand", WALRECOVER_EVERY="1000steps")
    assert lagging.run({0: (3, "step", TERM)}, lags=True)[0].status == 128 + TERM
    ended = lagging.run(lags=True)
    assert [e.status for e in ended] == [0, 0], ended


def test_more_epochs_and_a_finished_run(pair: Make, undisturbed: Pair) -> None:
    grown = pair("training")
    assert [e.status for e in grown.run(epochs=1)] == [0, 0]
    assert [e.status for e in grown.run(epochs=3)] == [0, 0]
    assert grown.results() == undisturbed.results()
    before = grown.commits()
    assert [e.status for e in grown.run(epochs=3)] == [0, 0]
    assert grown.commits() == before
    assert grown.losses() == undisturbed.losses()


def test_the_parameters_are_written_once_and_the_buffers_by_each(pair: Make) -> None:
    run = pair("training")
    run.run()
    (manifest,) = (run.folder / ".walrecover").glob("runs/*/snapshots/*-end*/manifest.json")
    first, second = json.loads(manifest.read_text())["parts"]
    assert second["tensors"]["model.0.weight"]["file"].endswith("rank-00000.safetensors")
    assert second["tensors"]["optimizer.state.0.exp_avg"]["file"].endswith("00000.safetensors")
    assert second["tensors"]["model.1.running_mean"]["file"].endswith("rank-00001.safetensors")
    assert first["replicated"] == second["replicated"]


def test_replicas_that_differ_are_no_snapshot(pair: Make) -> None:
    drifting = pair("drifting")
    first, second = drifting.run()
    assert [c.step for c in drifting.commits()] == [1, 2]
    said = "abandoned: step 3: replicated state of rank 1 differs from rank 0's in model.0.weight"
    assert said in first.output
    for ended in (first, second):  # nor could the end
        assert "could not be committed" in ended.output
        assert ended.status == 1


def test_a_rank_that_never_comes_is_named(pair: Make) -> None:
    first, second = pair("late").run()
    assert first.status == 1
    assert "RanksMissing: rank 1 did not come to walrecover.attach() within 1 s" in first.output
    assert second.status == 0


def test_what_the_first_rank_cannot_begin_no_rank_begins(pair: Make) -> None:
    for ended in pair("refused").run():
        assert ended.status == 1
        assert "has no committed snapshot to resume from" in ended.output


def test_what_is_each_ranks_own_is_a_mismatch_for_another_number_of_ranks(
    pair: Make, server: ForkServer
) -> None:
    shrunk = pair("training")
    shrunk.run({0: (4, "step", KILL)})
    alone = Trial(server, shrunk.folder, "ranks:training")
    alone.attempts = 100
    status, output = alone.run(store=str(shrunk.folder / "alone"), rank=0, world=1)
    assert status == 1
    assert "Mismatch: the snapshot was taken by 2 ranks, and there are 1 now" in output
    assert "each rank has its own own.rank (0 on rank 0, 1 on rank 1)" in output
    assert "DataLoader with DistributedSampler stands at item" in output


def test_attach_before_the_process_group_is_an_error(server: ForkServer, tmp_path: Path) -> None:
    status, output = Trial(server, tmp_path, "ranks:ungrouped").run()
    assert status == 1
    assert "call walrecover.attach() after torch.distributed.init_process_group()" in output


def test_torchruns_own_restarts_are_attempts_that_resume(
    server: ForkServer, tmp_path: Path
) -> None:
    script = Path(__file__).parent / "scripts" / "under_torchrun.py"
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    for folder in (whole, restarted):
        folder.mkdir()
    children = [
        server.start(
            "runpy:run_path",
            folder=whole,
            output=whole / f"output-{rank}",
            env=ENVIRONMENT | {"KILLS": "0", "RANK": f"{rank}", "TORCHELASTIC_RESTART_COUNT": "0"},
            path_name=str(script),
        )
        for rank in range(2)
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "--max-restarts=3", str(script)),
        ],
        cwd=restarted,
        env=os.environ | ENVIRONMENT | {"KILLS": "2", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [child.wait() for child in children] == [0, 0]
    expected, _ = results(whole)
    first, second = results(restarted)
    assert expected[:3] == [0, 0, 8]
    assert first[0] == second[0] == 2  # its third life
    assert first[1] == second[1] > 0
    assert first[2:] == second[2:] == expected[2:]


ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def results(folder: Path) -> list[Any]:
    return [json.loads((folder / f"result-{rank}").read_text()) for rank in range(2)]
