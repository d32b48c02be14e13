"""The way out: the exception that ends a script is in the journal; the last completed step is saved
where its state is whole, the last commit stands where it is not, and either way the same command
ends with the bits of a run that nothing disturbed.
"""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.forkserver import ForkServer
from tests.support.trial import Trial
from walrecover import entries, events, recovery
from walrecover.cli.show import command as show
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

from .conftest import MEMORY

AT = 9
EVERY = {"WALRECOVER_EVERY": "4steps"}
STEPS = 18


def run_of(trial: Trial) -> RunDir:
    root = trial.folder / ".walrecover"
    (name,) = list_runs(root)
    return RunDir(root, name)


def raised(trial: Trial) -> list[events.ExceptionRaised]:
    records = recovery.fold_run(run_of(trial)).records
    return [event for record in records.values() for event in record.raised]


@pytest.mark.parametrize(
    ("where", "script"),
    [(w, "training") for w in ("forward", "backward", "loader", "between", "evaluation")]
    + [("forward", "recorded")],
)
def test_the_exception_that_ends_a_script_is_in_the_journal(
    server: ForkServer, folder: Path, where: str, script: str
) -> None:
    trial = Trial(server, folder, f"failing:{script}", EVERY)
    ended = trial.run(at=AT, where=where)
    assert ended.status == 1
    assert "Traceback (most recent call last)" in ended.output  # printed as ever
    (event,) = raised(trial)
    assert event.kind == "tests.end_to_end.scripts.failing.Broken"
    assert event.bases == ("builtins.ValueError", "builtins.Exception", "builtins.BaseException")
    assert event.message == f"planted in {where} of step {AT}, token=<redacted>"
    assert event.file.endswith("tests/end_to_end/scripts/failing.py")
    assert event.function == "Fuse.reaches"
    assert event.step == (AT if where == "evaluation" else AT - 1)
    assert event.fetching == (where == "loader")


def commits(trial: Trial) -> list[int]:
    found = Sequence(run_of(trial).sequence).read()
    return [commit.snapshot.step for commit in entries.commits(found)]


def salvaged(trial: Trial) -> list[events.SalvageTried]:
    records = recovery.fold_run(run_of(trial)).records
    return [event for record in records.values() for event in record.salvaged]


@pytest.fixture(scope="session")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Nothing disturbs it."""
    trial = Trial(server, tmp_path_factory.mktemp("whole"), "failing:training", EVERY)
    ended = trial.run(at=0, where="nowhere")
    assert ended.status == 0, ended.output
    assert max(trial.losses()) == STEPS
    return trial


def require_the_same_end(trial: Trial, whole: Trial, **arguments: object) -> None:
    """The same command again comes to the undisturbed end, and repeats no step otherwise."""
    ended = trial.run(**arguments)
    assert ended.status == 0, ended.output
    assert trial.result() == whole.result()
    assert trial.losses() == whole.losses()


# Where it fails, in making which step, what is saved, and why not where it is not. A snapshot
# comes every four steps.
FAILURES = [
    ("forward", 11, 10, ""),
    ("backward", 11, 10, ""),
    ("loader", 11, 10, ""),
    ("loader", 13, 12, None),  # step 12 was saved as such; the failure is in the next epoch
    ("forward", 2, 1, ""),  # before any snapshot
    ("between epochs", 6, 6, ""),
    ("between", 11, 8, "AdamW.step() had begun"),
    ("between", 2, 0, "AdamW.step() had begun"),
    ("evaluation", 9, 8, "the code behind its run.step() had not come to the loop's next item"),
]


@pytest.mark.parametrize(("where", "at", "saved", "reason"), FAILURES)
def test_an_exception_loses_no_step_whose_state_is_whole(
    server: ForkServer,
    folder: Path,
    whole: Trial,
    where: str,
    at: int,
    saved: int,
    reason: str | None,
) -> None:
    trial = Trial(server, folder, "failing:training", EVERY)
    ended = trial.run(at=at, where=where)
    assert ended.status == 1
    assert max(commits(trial), default=0) == saved
    step = at if where in ("evaluation", "between epochs") else at - 1
    if reason is None:
        assert salvaged(trial) == []
    else:
        (event,) = salvaged(trial)
        assert (event.step, event.saved, event.reason) == (step, not reason, reason)
        assert event.stands == saved
        expected = f"step {step} is {'not ' if reason else ''}saved on the way out"
        assert f"walrecover: {expected}" in ended.output
    require_the_same_end(trial, whole, at=at, where=where)
    again = [step for step, count in _executions(trial).items() if count > 1]
    assert again == list(range(saved + 1, step + 1))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("forward", "→ saved     step 10, on the way out"),
        ("between", "→ not saved step 10: AdamW.step() had begun; step 8 stands"),
    ],
)
def test_show_says_what_became_of_the_last_step(
    server: ForkServer,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    expected: str,
) -> None:
    trial = Trial(server, folder, "failing:training", EVERY)
    trial.run(at=11, where=where)
    show.main(["--dir", str(folder / ".walrecover")], standalone_mode=False)
    assert expected in capsys.readouterr().out


def _executions(trial: Trial) -> dict[int, int]:
    found: dict[int, int] = {}
    for line in (trial.folder / "steps").read_text().splitlines():
        step = int(line.split()[0])
        found[step] = found.get(step, 0) + 1
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_loses_no_step(
    server: ForkServer, folder: Path, whole: Trial, number: signal.Signals
) -> None:
    trial = Trial(server, folder, "failing:signalled", EVERY)
    ended = trial.run(at=11, number=int(number))
    assert ended.status == 128 + number, ended.output
    assert max(commits(trial)) == 11  # the step in whose forward it came is completed first
    assert f"stopped by {number.name}; step 11 is saved" in ended.output
    require_the_same_end(trial, whole, at=11, number=int(number))
    assert set(_executions(trial).values()) == {1}  # nothing was done twice


def test_an_exception_behind_an_exit_code_loses_no_step_either(
    server: ForkServer, folder: Path, whole: Trial
) -> None:
    trial = Trial(server, folder, "failing:hidden", EVERY)
    assert trial.run(at=11, where="backward").status == 3
    assert max(commits(trial)) == 10
    trial.script = whole.script
    require_the_same_end(trial, whole, env={"WALRECOVER_RUN": run_of(trial).name}, at=0, where="")


def test_a_hand_written_update_saves_nothing(server: ForkServer, folder: Path) -> None:
    trial = Trial(server, folder, "failing:by_hand", EVERY)
    assert trial.run(at=7).status == 1
    (event,) = salvaged(trial)
    assert (event.step, event.saved, event.stands) == (6, False, 4)
    assert event.reason == "model.0.0.weight is trained and belongs to no attached optimizer"
    assert max(commits(trial)) == 4
    undisturbed = Trial(server, folder / "whole", "failing:by_hand", EVERY)
    assert undisturbed.run(at=0).status == 0
    require_the_same_end(trial, undisturbed, at=7)


def test_nothing_is_saved_while_another_thread_trains(
    server: ForkServer, folder: Path, whole: Trial
) -> None:
    """It moves the state that is being saved."""
    trial = Trial(server, folder, "failing:beside", EVERY)
    ended = trial.run(at=11)
    assert ended.status == 1
    assert "Broken: beside the training" in ended.output
    (event,) = salvaged(trial)
    assert (event.step, event.saved, event.stands) == (10, False, 8)
    assert event.reason == "another thread goes on training"
    require_the_same_end(trial, whole, at=11)


def test_a_disk_that_refuses_hides_no_exception(
    server: ForkServer, folder: Path, whole: Trial
) -> None:
    trial = Trial(server, folder, "failing:refused", EVERY)  # those of steps 4 and 8 are whole
    ended = trial.run(at=11, where="forward")
    assert ended.status == 1
    assert "Broken: planted in forward of step 11" in ended.output
    (said,) = (line for line in ended.output.splitlines() if "on the way out" in line)
    assert said.startswith("walrecover: step 10 is not saved on the way out: ")
    refusal = "rank-00000.safetensors: failpoint shards.tensors.written"
    assert said.endswith(f"{refusal}; the last commit, step 8, stands")
    assert max(commits(trial)) == 8
    require_the_same_end(trial, whole, at=11, where="forward")


def test_a_stop_with_no_time_left_leaves_the_last_commit(
    server: ForkServer, folder: Path, whole: Trial
) -> None:
    trial = Trial(server, folder, "failing:signalled", EVERY)
    ended = trial.run(
        env={"WALRECOVER_GRACE": "0s"}, at=11, number=int(signal.SIGTERM), committed=8
    )
    assert ended.status == 128 + signal.SIGTERM
    assert "step 11 is not saved on the way out: 0.0 s are left, and the last" in ended.output
    assert "the last commit, step 8, stands" in ended.output
    assert max(commits(trial)) == 8
    require_the_same_end(trial, whole, at=11, number=int(signal.SIGTERM))


@settings(max_examples=6)
@given(
    at=st.integers(1, STEPS),
    where=st.sampled_from(["forward", "backward", "loader", "between", "evaluation"]),
    every=st.integers(1, 7),
)
def test_wherever_it_fails_the_end_is_the_same(
    server: ForkServer, whole: Trial, at: int, where: str, every: int
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        trial = Trial(server, Path(name), "failing:training", {"WALRECOVER_EVERY": f"{every}steps"})
        trial.run(at=at, where=where)
        for event in salvaged(trial):
            assert event.saved == (where in ("forward", "backward", "loader"))
        if where in ("forward", "backward", "loader"):
            assert max(commits(trial), default=0) == at - 1
        if (trial.folder / "healed").exists():
            require_the_same_end(trial, whole, at=at, where=where)
