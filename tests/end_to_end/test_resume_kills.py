"""Killed at every k-th step and restarted until done, a script ends as if undisturbed: the same
bits in what it attached, in every generator, and in the loss of every step, whoever executed it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.attempt import KILL
from tests.support.forkserver import ForkServer
from tests.support.trial import Trial
from walrecover import auditing
from walrecover.rundir import RunDir, list_runs
from walrecover.tiling import Judgement

SHAPES = (
    "epoch_code",
    "evaluation_with_loop",
    "evaluation_without_loop",
    "early_stop",
    "curriculum",
    "accumulation",
    "gan",
    "averaged",
    "own_batches",
    "views_of_the_data",
    "own_loop",
    "stateful_by_hand",
    "stateful_outside",
    "torchdata_loader",
    "torchdata_workers",
    "torchdata_outside",
    "opaque",
    "endless",
    "one_after_the_other",
    "plain_outer_loop",
    "plain_outer_loop_with_break",
    "plain_outer_loop_with_leftover",
    "plain_inner_loop",
    "zipped",
    "under_tqdm",
    "prologues",
    "three_deep",
    "workers",
    "persistent_workers",
    "own_generators",
    "augmented",
    "second_order",
    "scaled",
    "half_precision",
    "channels_last",
)
# How it is killed: at each k-th step, where, and how often a snapshot is taken meanwhile. Each
# makes progress: a kill at a boundary comes after its snapshot, one in a step before it.
KILLS = {
    1: ("boundary", "1steps"),
    2: ("step", "1steps"),
    3: ("step", "2steps"),
    4: ("step", "1steps"),
    7: ("step", "3steps"),
}
# They read their data through no `run.loop`.
WITHOUT_DATA = ("own_loop",)
# It takes three steps to its boundary, so that it makes no progress in fewer.
FEW_BOUNDARIES = "plain_inner_loop"


@pytest.fixture(scope="session")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    """The undisturbed run of each shape, made when first asked for."""

    class Undisturbed(dict[str, Trial]):
        def __missing__(self, shape: str) -> Trial:
            trial = Trial(server, tmp_path_factory.mktemp(shape), f"shapes:{shape}")
            status, output = trial.run()
            assert status == 0, output
            self[shape] = trial
            return trial

    return Undisturbed()


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_killed_at_every_kth_step_ends_undisturbed(
    server: ForkServer, folder: Path, undisturbed: dict[str, Trial], shape: str, k: int
) -> None:
    if shape == FEW_BOUNDARIES:
        k = max(k, 4)
    where, every = KILLS[k]
    trial = Trial(server, folder, f"shapes:{shape}", {"WALRECOVER_EVERY": every})
    kills = trial.run_until_done((k, where, KILL))
    whole = undisturbed[shape]
    assert kills >= (len(whole.losses()) - 1) // (k + 1)
    assert trial.losses() == whole.losses()
    assert trial.result() == whole.result()
    found = audit_of(trial)
    assert found.verdict == ("unproven" if shape in WITHOUT_DATA else "ok"), found
    assert found.reports == audit_of(whole).reports


def audit_of(trial: Trial) -> Judgement:
    root = trial.folder / ".walrecover"
    (name,) = list_runs(root)
    return auditing.audit(RunDir(root, name))
