"""The way out of two ranks: one fails, the other gets the collective's error; what both hold of one
step is committed by whoever votes last, and anything else leaves the last commit.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from walrecover import events, recovery
from walrecover.rundir import RunDir, list_runs

from .test_two_ranks import Pair, pair

__all__ = ["pair"]

Make = Callable[..., Pair]
EVERY = {"WALRECOVER_EVERY": "3steps"}
TERM = int(signal.SIGTERM)


@pytest.fixture
def undisturbed(pair: Make) -> Pair:
    whole = pair("failing", **EVERY)
    assert [ended.status for ended in whole.run()] == [0, 0]
    return whole


def salvaged(run: Pair) -> dict[str, events.SalvageTried]:
    root = run.folder / ".walrecover"
    (name,) = list_runs(root)
    records = recovery.fold_run(RunDir(root, name)).records
    return {key.writer: record.salvaged[-1] for key, record in records.items() if record.salvaged}


@pytest.mark.parametrize(
    ("who", "where", "kept"), [(0, "forward", 4), (1, "forward", 4), (1, "between", 3)]
)
def test_a_step_is_saved_that_both_ranks_hold(
    pair: Make, undisturbed: Pair, who: int, where: str, kept: int
) -> None:
    run = pair("failing", **EVERY)
    arguments = {"who": who, "at": 5, "where": where}
    ended = run.run(**arguments)
    assert [rank.status for rank in ended] == [1, 1], ended
    assert run.commits()[-1].step == kept, ended
    found = salvaged(run)
    if where == "forward":
        assert found[f"rank-{1 - who}"].saved  # it voted last
        assert f"rank {1 - who}: step 4 is saved on the way out" in ended[1 - who].output
    else:
        assert found["rank-1"].reason == "AdamW.step() had begun"
        assert not any(event.saved for event in found.values())
    again = run.run(**arguments)
    assert [rank.status for rank in again] == [0, 0], again
    assert run.results() == undisturbed.results()
    assert run.losses() == undisturbed.losses()


def test_both_ranks_told_to_stop_lose_no_step(pair: Make, undisturbed: Pair) -> None:
    run = pair("failing", **EVERY)
    ended = run.run({0: (4, "step", TERM), 1: (4, "step", TERM)})
    assert [rank.status for rank in ended] == [128 + TERM] * 2, ended
    stopped = run.commits()[-1].step
    assert stopped >= 4 and f"step {stopped} is saved" in ended[0].output
    assert [rank.status for rank in run.run()] == [0, 0]
    assert run.results() == undisturbed.results()
    executed = (run.folder / "steps-0").read_text().splitlines()
    assert len(executed) == len(run.losses()[0])  # no step was done twice
