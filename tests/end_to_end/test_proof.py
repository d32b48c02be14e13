"""A resume proves itself; and each way in which one goes wrong is found, and called by its name.

The planted faults are tests of the tests: a proof that finds none of them proves nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.attempt import KILL
from tests.support.elastic import TERM
from tests.support.forkserver import ForkServer
from tests.support.trial import KILLED, Trial
from walrecover import entries, recovery, resumes
from walrecover import events as ev
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

Verdicts = dict[tuple[int, int], ev.Event]


class Resumed(NamedTuple):
    """The second attempt of a script: how it ended, what it printed, what it journaled of its
    resume on rank 0, and what is made of the journal afterwards, by attempt and rank."""

    status: int
    output: str
    journaled: list[Any]
    judged: Verdicts


Resume = Callable[..., Resumed]


@pytest.fixture
def resume(server: ForkServer, folder: Path) -> Resume:
    """Kills a script in a step, the third behind a snapshot, and starts it again with a fault."""

    def make(
        fault: str = "",
        at: tuple[int, str] = (7, "step"),
        every: str = "4steps",
        damage: int = 0,
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> Resumed:
        trial = Trial(server, folder / "run", "faults:training", {"WALRECOVER_EVERY": every})
        assert trial.run((*at, KILL), **arguments).status == KILLED
        for _ in range(damage):
            _lose_the_newest(_run(trial))
        status, output = trial.run(None, env, fault=fault, **arguments)
        return Resumed(status, output, *_verdicts(_run(trial)))

    return make


def _run(trial: Trial) -> RunDir:
    root = trial.folder / ".walrecover"
    return RunDir(root, list_runs(root)[0])


def _verdicts(run: RunDir) -> tuple[list[Any], Verdicts]:
    state = recovery.fold_run(run)
    judged = resumes.judge(state, resumes.steps_of(run))
    own = next(r for k, r in state.records.items() if (k.attempt, k.writer) == (2, "rank-0"))
    return own.proofs, {(one.attempt, one.rank): one.verdict for one in judged}


def _lose_the_newest(run: RunDir) -> None:
    """Damage the newest snapshot's shard that is still whole."""
    for commit in entries.candidates(Sequence(run.sequence).read()):
        (shard,) = (run.snapshots / commit.snapshot.name).glob("*.safetensors")
        data = bytearray(shard.read_bytes())
        if data[-1] != 0xA5:
            data[-1] = 0xA5
            shard.write_bytes(data)
            return


def audit(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "walrecover.cli", "audit", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _diverged(found: Resumed) -> ev.ResumeDiverged:
    verdict = found.judged[2, 0]
    assert isinstance(verdict, ev.ResumeDiverged), (verdict, found.output)
    assert f"resume diverged at step {verdict.step}: {verdict.what}" in found.output
    return verdict


# -- no fault ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_p6_a_resume_proves_itself(resume: Resume, folder: Path, workers: int) -> None:
    found = resume(workers=workers)
    assert found.status == 0, found.output
    verdict = found.judged[2, 0]
    assert isinstance(verdict, ev.ResumeVerified), found.output
    assert (verdict.base, verdict.tier, verdict.from_step) == (4, "exact", 5)
    assert verdict.to_step == 6  # the kill came before the boundary of step 7
    assert verdict.restored
    assert f"resume verified to step {verdict.to_step}" in found.output
    audited = audit(folder / "run")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert "attempt 2, rank 0: resume verified to step 6" in audited.stdout
    # It was journaled by the session: at once of the state, then of the steps.
    assert [proof.to_step for proof in found.journaled] == [0, verdict.to_step]


def test_p6_where_no_step_is_done_twice_the_state_is_the_proof(resume: Resume) -> None:
    found = resume(at=(4, "committed"))
    verdict = found.judged[2, 0]
    assert isinstance(verdict, ev.ResumeVerified), found.output
    assert (verdict.from_step, verdict.to_step, verdict.base) == (0, 0, 4)
    assert verdict.restored
    assert "no step was done twice" in found.output


def test_p6_the_whole_state_is_compared_where_both_captured_it(resume: Resume) -> None:
    found = resume(at=(7, "committed"), every="1steps", damage=2, paced=True)
    verdict = found.judged[2, 0]
    assert isinstance(verdict, ev.ResumeVerified), found.output
    assert verdict.base == 5
    assert 6 in verdict.states


# -- planted faults ------------------------------------------------------------------------------

AT_ONCE = [
    ("rng not restored", "the random state of torch"),
    ("optimizer a step behind", "the state of optimizer.state.0.step"),
    ("flipped bit", "the state of model.0.weight"),
]


@pytest.mark.parametrize(("fault", "what"), AT_ONCE)
def test_a_state_that_is_not_the_saved_one_is_found_before_a_step_is_made(
    resume: Resume, fault: str, what: str
) -> None:
    verdict = _diverged(resume(fault, every="2steps"))
    assert (verdict.step, verdict.what) == (6, what)
    assert verdict.before != verdict.after


def test_a_sampler_that_is_off_by_one(resume: Resume) -> None:
    """It is refused before a step is made: what it passes over on its way is held against what it
    had given out."""
    found = resume("sampler off by one")
    assert found.status == 1
    assert "gives out other samples than before the snapshot" in found.output, found


def test_a_sampler_of_the_global_order_that_is_off_by_one(resume: Resume) -> None:
    """It begins anywhere, passes over nothing, and so shows it first at the step done again."""
    verdict = _diverged(resume("reader off by one", ordered=True))
    assert verdict.step == 5
    assert verdict.what.startswith("the samples")


def test_a_worker_seeded_from_time(resume: Resume, folder: Path) -> None:
    verdict = _diverged(resume("worker seeded from time", workers=2))
    assert (verdict.step, verdict.what) == (5, "the batch")
    audited = audit(folder / "run", "--json")
    assert audited.returncode == 1
    (one,) = json.loads(audited.stdout)["resumes"]
    assert (one["verdict"], one["step"], one["what"]) == ("diverged", 5, "the batch")


def test_a_scheduler_that_was_restarted_is_an_error_with_both_values(resume: Resume) -> None:
    found = resume("scheduler restarted")
    assert found.status == 1
    assert "scheduler stands at schedule step 0, and stood at 4" in found.output
    assert "the learning rate of optimizer is 0.05, and was 0.0328" in found.output
    assert "Mismatch" in found.output


def test_a_scheduler_that_the_script_makes_anew_is_found_by_its_learning_rate(
    resume: Resume,
) -> None:
    verdict = _diverged(resume("scheduler made anew"))
    assert (verdict.step, verdict.what) == (5, "the learning rate")
    assert verdict.after == "0.045000000000000005"


def test_buffers_that_moved_after_the_step_are_found_by_the_state_alone(resume: Resume) -> None:
    """Loss, gradient norm, batch, rates and generators of all steps agree."""
    found = resume(
        "buffers moved after the step", at=(7, "committed"), every="1steps", damage=2, paced=True
    )
    verdict = _diverged(found)
    assert (verdict.step, verdict.what) == (6, "the state of model")


def test_a_rank_that_is_a_step_behind(server: ForkServer, folder: Path) -> None:
    ranks = [
        Trial(server, folder / "run", "faults:two_ranks", {"WALRECOVER_EVERY": "2steps"})
        for _ in range(2)
    ]

    def attempt(number: int, end: tuple[int, str, int] | None, fault: str) -> list[int]:
        children = []
        for n, trial in enumerate(ranks):
            trial.attempts = 2 * number + n
            given = {"store": str(trial.folder / f"store-{number}"), "rank": n, "fault": fault}
            result = str(trial.folder / f"result-{n}")
            children.append(trial.start(end, log=f"steps-{n}", result=result, **given))
        return [child.wait() for child in children]

    for number in (1, 2):  # on the way out a snapshot is committed, however slow the machine is
        assert attempt(number, (1, "step", TERM), "") == [128 + TERM, 128 + TERM]
    run = _run(ranks[0])
    kept = entries.candidates(Sequence(run.sequence).read())
    base = kept[0].snapshot.step
    assert base > kept[1].snapshot.step
    attempt(3, None, "rank a step behind")
    judged = resumes.judge(recovery.fold_run(run), resumes.steps_of(run))
    verdict = next(one.verdict for one in judged if (one.attempt, one.rank) == (3, 1))
    assert isinstance(verdict, ev.ResumeDiverged)
    assert verdict.step == base
    assert verdict.what == "the state of model.0.weight"
    assert (
        f"walrecover: rank 1: resume diverged at step {base}"
        in (ranks[0].folder / "output-8").read_text()
    )


# -- what the policy does ------------------------------------------------------------------------


def test_the_policy_may_stop_on_a_divergence(resume: Resume) -> None:
    found = resume("flipped bit", env={"WALRECOVER_ON_DIVERGENCE": "stop"})
    assert found.status == 1
    assert "Diverged: resume diverged at step 4" in found.output
    assert isinstance(found.judged[2, 0], ev.ResumeDiverged)


def test_without_one_it_goes_on_and_is_told_once(resume: Resume) -> None:
    found = resume("flipped bit")
    assert found.status == 0
    assert found.output.count("resume diverged") == 1
