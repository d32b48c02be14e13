"""Runs whose number of ranks changes from attempt to attempt: what was saved by some goes on with
others, or is refused by name and goes on with as many as before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns.proof import proofs
from tests.support.attempt import KILL
from tests.support.elastic import TERM, Elastic
from tests.support.forkserver import ForkServer
from tests.support.trained import agree
from tests.support.trial import KILLED
from walrecover import entries, recovery, resumes
from walrecover.events import ResumeVerified
from walrecover.sequence import Sequence

from .scripts import resized

Make = Callable[..., Elastic]


@pytest.fixture
def elastic(server: ForkServer, folder: Path) -> Make:
    def make(**env: str) -> Elastic:
        where = folder / f"{len(list(folder.iterdir()))}"
        where.mkdir()
        return Elastic(server, where, **env)

    return make


EPOCHS = 12
"""More than the chain comes to: ranks that are told to stop still make steps, slow ones more."""

CHAIN = [
    (2, 1, (5, "boundary", KILL)),  # so late that there is a commit, whatever the kill cuts off
    (1, 0, (2, "step", KILL)),
    (3, 2, (4, "boundary", KILL)),
    (2, 0, (2, "step", TERM)),
    (3, 0, (3, "boundary", KILL)),
    (1, 0, (3, "step", TERM)),
    (2, 0, (4, "step", KILL)),
    (3, 1, (2, "boundary", KILL)),
    (3, 2, (1, "boundary", KILL)),
    (1, 0, (4, "boundary", KILL)),
    (3, 1, (3, "step", TERM)),
    (2, 1, (3, "step", KILL)),
]
"""Attempts: of how many ranks, which of them is hit, and how. One of two ranks ends the run."""


@pytest.mark.parametrize(
    "world, unused, tier", [(2, False, "exact"), (3, False, "tolerant"), (3, True, "exact")]
)
def test_where_ddp_adds_up_in_another_order_no_resume_is_called_exact(
    elastic: Make, world: int, unused: bool, tier: str
) -> None:
    """Its first step, which every attempt makes anew, fills the buckets unlike later ones."""
    run = elastic(WALRECOVER_EVERY="2steps")
    assert run.run(world, {1: (4, "step", KILL)}, unused=unused)[1].status == KILLED
    assert [e.status for e in run.run(world, unused=unused)] == [0] * world
    folded = recovery.fold_run(run.directory)
    found = [one.verdict for one in resumes.judge(folded, resumes.steps_of(run.directory))]
    verified = [one for one in found if isinstance(one, ResumeVerified)]
    assert len(found) == len(verified) == world, found
    compared = [one for one in verified if one.to_step]
    assert {one.tier for one in compared} == {tier}, verified
    for one in compared:
        assert ("DDP adds up the gradients of 3 ranks in another order" in str(one.why)) == (
            tier == "tolerant"
        )


def test_a_chain_of_12_restarts_with_other_numbers_of_ranks(elastic: Make) -> None:
    undisturbed, run = elastic(), elastic(WALRECOVER_EVERY="2steps")
    assert undisturbed.run(1, epochs=EPOCHS)[0].status == 0
    for world, who, how in CHAIN:
        ended = run.run(world, {who: how}, epochs=EPOCHS)
        assert ended[who].status == (KILLED if how[2] == KILL else 128 + TERM), ended
    assert [e.status for e in run.run(2, epochs=EPOCHS)] == [0, 0]

    assert run.samples() == undisturbed.samples()
    assert run.learning_rates() == undisturbed.learning_rates()
    assert {len(ways) for ways in run.samples().values()} == {1}
    counted = agree(run.directory, run.ids, EPOCHS, resized.SIZE)
    assert counted["attempts"] > 6
    assert counted["steps"] == EPOCHS * resized.SIZE // resized.BATCH

    proven = proofs(run.directory)
    assert not proven["not_proven"], proven

    worlds = [world for world, _, _ in CHAIN] + [2]
    plans = [entry.plan for entry in entries.attempts(Sequence(run.directory.sequence).read())]
    assert plans[0].ranks == 0
    assert {plan.ranks for plan in plans[1:]} == {1, 2, 3}
    assert {e.source for e in run.resumed() if e.saved_by == 2} == {0, 1}
    assert [a["ranks"] for a in json.loads(run.show("--json"))["attempts"]] == worlds
    shown = run.show()
    for line in ("from 2 to 1 ranks", "from 1 to 3 ranks", "from 3 to 2 ranks"):
        assert f"→ resized   {line}; drawn anew on each: " in shown


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
    assert max(run.samples()) == 12


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
    assert max(run.samples()) == 12
