"""What a kill met is told by what was there when it came, whatever is made of that later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.protocol import holder
from walrecover.beats import Phase
from walrecover.processes import identity
from walrecover.recovery import begin_attempt
from walrecover.rehearse import tree
from walrecover.rehearse.kill import Killer
from walrecover.rehearse.plan import Kill
from walrecover.rehearse.readout import Timing
from walrecover.rundir import RunDir

NONCE = "0000000a"
AT_A_SNAPSHOT = Kill(step=4, until=20, aim="snapshot", moment=0.0, pick=0.0)


class Performance:
    def __init__(self, run: RunDir, saving: set[str]) -> None:
        self.run, self.pid = run, identity().pid
        self._saving = saving

    def saving(self, nonce: str) -> set[str]:
        return set(self._saving)


class Attempt:
    """A rank that is in these phases, one after the other, each time somebody looks."""

    def __init__(self, *phases: Phase) -> None:
        self.number, self.nonce = 1, NONCE
        self.ranks = [SimpleNamespace(process=None)]
        self._phases: Iterator[Phase] = iter(phases)

    def read(self, rank: int) -> Any:
        beat = SimpleNamespace(step=6, phase=next(self._phases))
        beat._replace = lambda phase: SimpleNamespace(step=6, phase=phase)
        return beat


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    made.create()
    begin_attempt(made, holder())
    return made


def killed(run: RunDir, saving: set[str], *phases: Phase) -> Any:
    timing = Timing(40, 0.1, 0.01, 1.0)
    killer = Killer(
        Performance(run, saving),  # type: ignore[arg-type]
        timing,
        on_step=lambda step: None,
        on_lull=lambda attempt: None,
    )
    return killer._kill(AT_A_SNAPSHOT, Attempt(*phases), 0, 4)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "kill", lambda process: True)


def test_between_a_capture_and_the_first_file_of_its_saver_it_is_in_a_snapshot(
    run: RunDir,
) -> None:
    strike = killed(run, set(), "snapshot", "training")
    assert (strike.phase, strike.inside) == ("snapshot", True)


def test_while_a_saver_writes_it_is_in_a_snapshot(run: RunDir) -> None:
    assert killed(run, {f"step-00000006.a1-{NONCE}"}, "training", "training").inside


def test_where_nothing_is_saved_no_kill_is_made_that_was_aimed_at_it(run: RunDir) -> None:
    assert killed(run, set(), "training", "training") is None
