"""The way out: an exception that ends the script is in the journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.forkserver import ForkServer
from tests.support.trial import Trial
from walrecover import events, recovery
from walrecover.rundir import RunDir, list_runs

AT = 9
EVERY = {"WALRECOVER_EVERY": "4steps"}


def run_of(trial: Trial) -> RunDir:
    root = trial.folder / ".walrecover"
    (name,) = list_runs(root)
    return RunDir(root, name)


def raised(trial: Trial) -> list[events.ExceptionRaised]:
    records = recovery.fold_run(run_of(trial)).records
    return [event for record in records.values() for event in record.raised]


@pytest.mark.parametrize("where", ["forward", "backward", "loader", "between", "evaluation"])
def test_the_exception_that_ends_a_script_is_in_the_journal(
    server: ForkServer, folder: Path, where: str
) -> None:
    trial = Trial(server, folder, "failing:training", EVERY)
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
