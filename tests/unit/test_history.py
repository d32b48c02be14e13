"""What a supervisor inherits from the one before it, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.protocol import Launch, holder
from walrecover import events as ev
from walrecover import lease, recovery
from walrecover.causes import Verdict
from walrecover.entries import Holder
from walrecover.policy import Decision, Policy, decide_restart
from walrecover.recovery import Begun
from walrecover.rundir import RunDir
from walrecover.supervisor.child import Ending
from walrecover.supervisor.history import History
from walrecover.supervisor.notes import Notes


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    made.create()
    return made


def supervisor(name: str, pid: int) -> Holder:
    return msgspec.structs.replace(holder(pid), supervisor=name)


def attempt(run: RunDir, who: Holder, *events: ev.Event, steps: int = 0, **options: Any) -> Begun:
    """An attempt of a supervisor that is dead by now, with what it noted."""
    begun = recovery.begin_attempt(run, who, **options)
    if steps:
        with Launch(run, begun.entry) as launch:
            launch.open()
            launch.train(steps)
    notes = Notes(run, begun)
    for event in events:
        notes.append(event)
    notes.close()
    return begun


def crashed(step: int = 0, code: int = 1) -> ev.WorkerExited:
    return ev.WorkerExited(
        pid=7, code=code, cause="code", fingerprint="code:ValueError@train.py:3", step=step
    )


def decided(action: str, **more: Any) -> ev.RestartDecided:
    return ev.RestartDecided(action=action, delay=0.0, reason="", **more)


def inherits(run: RunDir, **options: Any) -> History:
    history = History(run)
    history.begin(recovery.begin_attempt(run, supervisor("new", 99), **options))
    return history


def test_a_budget_goes_on_where_the_supervisor_did_not_live_to_decide(run: RunDir) -> None:
    old = supervisor("old", 1)
    attempt(run, old, crashed(), decided("restart"))
    attempt(run, old, crashed())
    history = inherits(run)
    assert [ended.cause for ended in history.ended] == ["code", "code"]
    verdict = Verdict("code", "", "code:ValueError@train.py:3", "ValueError: x")
    entry = recovery.begin_attempt(run, supervisor("new", 99)).entry
    history.take(entry, Ending(code=1), [], verdict, asked=False)
    decision = decide_restart(0.0, history.ended, Policy())
    assert "permanent error, ValueError before the first step" in decision.reason


def test_a_supervisor_that_was_killed_counts_as_an_end(run: RunDir) -> None:
    attempt(run, supervisor("old", 1))
    (ended,) = inherits(run).ended
    assert (ended.cause, ended.fingerprint) == ("crash", "crash:supervisor")


def test_a_lost_host_counts_apart(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LENGTH_SECONDS", 0.05)  # for so long it is watched, and stands
    attempt(run, msgspec.structs.replace(supervisor("old", 1), boot="another/1"))
    (ended,) = inherits(run).ended
    assert ended.cause == "node_lost"


@pytest.mark.parametrize("after", ["stop", "nobody", "fresh"])
def test_who_starts_again_on_purpose_has_a_clean_sheet(run: RunDir, after: str) -> None:
    old = supervisor("old", 1)
    changed = {"MICRO_BATCH": "8"}
    attempt(run, old, crashed(), decided("restart", environment=changed))
    if after == "stop":
        attempt(run, old, crashed(), decided("stop", environment=changed))
    elif after == "nobody":
        recovery.begin_attempt(run, holder(2))  # by hand
    history = inherits(run, resume="never" if after == "fresh" else "auto")
    assert (history.ended, history.environment) == ([], {})


def test_what_was_before_a_fresh_start_is_another_try(run: RunDir) -> None:
    old = supervisor("old", 1)
    attempt(run, old, crashed(), decided("restart"), steps=9)
    attempt(run, old, crashed(), decided("restart"), steps=4, resume="never")
    (ended,) = inherits(run).ended
    assert (ended.attempt, ended.steps) == (2, 4)


def test_the_changed_environment_is_inherited_with_the_budget(run: RunDir) -> None:
    changed = {"MICRO_BATCH": "8"}
    attempt(run, supervisor("old", 1), crashed(), decided("restart", environment=changed))
    history = inherits(run)
    assert history.environment == changed
    said = history.follow(
        Decision("restart", 0.0, "", {"MICRO_BATCH": "/2"}), {"MICRO_BATCH": "32"}
    )
    assert (history.environment, said) == ({"MICRO_BATCH": "4"}, "MICRO_BATCH 8 → 4")


def test_only_steps_beyond_all_earlier_attempts_are_new(run: RunDir) -> None:
    attempt(run, supervisor("old", 1), steps=5)  # nothing was committed: they are done again
    history = inherits(run)
    assert [(ended.steps, ended.restored) for ended in history.ended] == [(5, True)]
    for steps, new in ((5, 0), (7, 2)):
        entry = attempt(run, supervisor("new", 99), steps=steps).entry
        records = [(entry, recovery.records_of(run, entry))]
        history.take(entry, Ending(signal=9), records, Verdict("crash", "", "crash"), asked=False)
        assert history.ended[-1].steps == new


def test_torchruns_own_restarts_belong_to_the_attempt_above_them(run: RunDir) -> None:
    old = supervisor("old", 1)
    attempt(run, old, steps=2)
    with Launch.begin(run, msgspec.structs.replace(old, pid=old.pid + 1)) as launch:
        launch.train(6)
    (ended,) = inherits(run).ended
    assert (ended.attempt, ended.steps) == (1, 6)


def test_how_often_a_run_went_back_is_counted_over_its_supervisors(run: RunDir) -> None:
    old = supervisor("old", 1)
    attempt(run, old, crashed(), decided("rewind"))
    attempt(run, old, crashed(), decided("rewind"))  # it went back once
    history = inherits(run)  # and again
    assert [ended.rewinds for ended in history.ended] == [0, 1]
    entry = recovery.begin_attempt(run, supervisor("new", 99)).entry
    history.take(entry, Ending(code=1), [], Verdict("numeric", "", "numeric"), asked=False)
    assert history.ended[-1].rewinds == 2
    policy = Policy(action="rewind", max_rewinds=2)
    assert "it has gone back 2 times" in decide_restart(0.0, history.ended, policy).reason
    anew = inherits(run, resume="never")
    assert anew.ended == []
