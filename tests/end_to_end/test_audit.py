"""The audit of real runs: what was killed is proved, what is missing is said, and data that changed
is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from tests.support.attempt import KILL
from tests.support.forkserver import ForkServer
from tests.support.trial import KILLED, Trial
from walrecover import cli
from walrecover.rundir import RunDir, list_runs

Start = Callable[..., Trial]


@pytest.fixture
def trial(server: ForkServer, folder: Path) -> Start:
    def make(script: str, **env: str) -> Trial:
        return Trial(server, folder / str(len(list(folder.iterdir()))), script, env)

    return make


def run_of(trial: Trial) -> RunDir:
    root = trial.folder / ".walrecover"
    (name,) = list_runs(root)
    return RunDir(root, name)


def audited(run: RunDir) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `walrecover audit`."""
    told = click.testing.CliRunner().invoke(
        cli.group, ["audit", run.name, "--dir", str(run.root), "--json"], standalone_mode=False
    )
    assert told.exception is None, told.exception
    return told.return_value, json.loads(told.stdout)


def printed(run: RunDir) -> str:
    arguments = ["audit", run.name, "--dir", str(run.root)]
    return click.testing.CliRunner().invoke(cli.group, arguments, standalone_mode=False).stdout


@pytest.mark.parametrize(
    ("script", "then", "now", "said"),
    [
        ("ordered", {"seed": 3, "samples": 12}, {"seed": 4, "samples": 12}, "was 3"),
        ("ordered", {"seed": 3, "samples": 12}, {"seed": 3, "samples": 10}, "was 12"),
        ("shrunk", {"samples": 12}, {"samples": 16}, "was 12"),
        ("reordered", {"start": 0}, {"start": 2}, "gives out other samples"),
    ],
)
def test_data_that_changed_is_refused_and_nothing_is_trained(
    trial: Start, script: str, then: dict[str, int], now: dict[str, int], said: str
) -> None:
    killed = trial(f"odd:{script}")
    assert killed.run((4, "step", KILL), **then).status == KILLED
    steps = (killed.folder / "steps").read_text()
    status, output = killed.run(**now)
    assert status == 1, output
    assert said in output
    assert "start over with WALRECOVER_RESUME=never" in output
    assert (killed.folder / "steps").read_text() == steps
    assert killed.run(**then).status == 0
    code, body = audited(run_of(killed))
    assert (code, body["verdict"], body["unproven"]) == (0, "ok", [])


def test_a_missing_journal_of_an_older_attempt_is_never_ok(trial: Start) -> None:
    killed = trial("odd:ordered")
    assert killed.run_until_done((3, "step", KILL), seed=3, samples=12) > 1
    run = run_of(killed)
    code, body = audited(run)
    assert (code, body["verdict"]) == (0, "ok")
    assert {(p["epoch"], p["consumed"]) for p in body["passes"] if p["kind"] == "global"} == {
        (0, 12),
        (1, 12),
    }
    (oldest,) = run.journal.glob("a1-*")
    shutil.rmtree(oldest)
    code, body = audited(run)
    assert (code, body["verdict"]) == (1, "unproven")
    assert f"attempt {oldest.name} of run {run.name}: its journal is missing" in body["unproven"][0]
    assert any(one["unknown"] and not one["gaps"] for one in body["passes"])
    shown = printed(run)
    assert "not proved" in shown
    assert "\nok" not in shown
