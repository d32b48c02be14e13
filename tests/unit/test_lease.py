"""The lease: whoever cannot see the holder's process goes by its counter."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from walrecover import lease, recovery
from walrecover.errors import RunBusy
from walrecover.processes import identity
from walrecover.rundir import RunDir


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lease, "LENGTH_SECONDS", 0.4)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.02)


def elsewhere(run: RunDir) -> Path:
    """An attempt whose holder is a process of another host."""
    run.create()
    holder = msgspec.structs.replace(identity(), host="elsewhere", boot="another")
    entry = recovery.begin_attempt(run, holder).entry
    folder = run.meeting(entry.number, entry.nonce)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.usefixtures("quick")
def test_a_holder_on_another_host_is_alive_while_its_lease_moves(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "run")
    with lease.holding(elsewhere(run)), pytest.raises(RunBusy, match="elsewhere"):
        recovery.begin_attempt(run, identity())


@pytest.mark.usefixtures("quick")
def test_a_lease_that_stands_still_for_its_length_has_run_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "run")
    with lease.holding(elsewhere(run)):
        pass
    assert recovery.begin_attempt(run, identity()).entry.number == 2


@pytest.mark.usefixtures("quick")
def test_a_holder_that_died_before_its_first_beat_holds_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "run")
    elsewhere(run)
    assert recovery.begin_attempt(run, identity()).entry.number == 2
