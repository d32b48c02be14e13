"""When rank 0 announces a pace: once it is known, and again only once the steps have changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.streams import create
from walrecover import events as ev
from walrecover.commits import Key
from walrecover.journal import Journal, Reader
from walrecover.pace import Known, Rate, optimum, parse
from walrecover.session.agreeing import MEASURED_STEPS, PACE_LOOK, Agreement
from walrecover.session.meeting import Meeting
from walrecover.session.pacing import Pacer
from walrecover.torch_adapter.ranks import World

NOTHING, FAILING = Known(), Known(Rate(2, 200.0), 0.5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with create(tmp_path) as journal:
        yield journal


def paces(
    journal: Journal,
    folder: Path,
    seconds: Iterable[float],
    every: str = "30s",
    known: Known = NOTHING,
    costs: Iterable[float] = (),
) -> list[tuple[int, int]]:
    """Boundaries at which a pace was announced, and which, for steps of so many seconds."""
    meeting, signals = Meeting(folder, 0, 1), SimpleNamespace(received=None)
    said: list[Any] = []
    pacer = Pacer(parse(every), known, journal)
    for cost in costs:
        pacer.stood_still(Key(1, False), cost)
    agreement = Agreement(meeting, signals, World(0, 1), journal, pacer, said.append)  # type: ignore[arg-type]
    times: deque[float] = deque(maxlen=21)
    found: list[tuple[int, int]] = []
    for step, took in enumerate(seconds, 1):
        times.append(took)
        agreement.reach(step, times)
        found += [(step, pace.every) for pace in meeting.paces[len(found) :]]
    assert said == []
    return found


def test_a_pace_is_announced_once_for_steady_steps(journal: Journal, tmp_path: Path) -> None:
    steady = [0.1, 0.11, 0.09, 0.12, 5.0, 0.08] * 20
    assert len(paces(journal, tmp_path / "m", steady)) == 1


def test_steps_that_became_slower_or_faster_get_another(journal: Journal, tmp_path: Path) -> None:
    found = paces(journal, tmp_path / "m", [0.1] * 40 + [1.0] * 40 + [0.1] * 40)
    assert [every for _, every in found] == [300, 30, 300]
    first, second, third = (step for step, _ in found)
    assert first == MEASURED_STEPS + 1
    assert 40 < second <= 40 + 11 + PACE_LOOK  # of the 21 newest steps 11 are of the new kind
    assert 80 < third <= 80 + 11 + PACE_LOOK


def test_auto_is_the_default_as_long_as_nothing_has_failed(
    journal: Journal, tmp_path: Path
) -> None:
    found = paces(journal, tmp_path / "m", [0.1] * 20, "auto", NOTHING, [0.02])
    assert found == [(MEASURED_STEPS + 1, 300)]


def test_auto_follows_from_what_a_capture_costs_and_how_often_it_fails(
    journal: Journal, tmp_path: Path
) -> None:
    found = paces(journal, tmp_path / "m", [0.1] * 20, "auto", FAILING, [9.0, 0.02, 0.02])
    assert found == [(MEASURED_STEPS + 1, round(optimum(0.02, 100.0) / 0.1))] == [(4, 20)]
    journal.sync()
    with Reader(journal.path) as reader:
        said = [event for _, event in reader.read() if isinstance(event, ev.PaceSet)]
    assert [(event.every, event.cost) for event in said] == [(20, 0.02)]
    assert said[0].seconds == pytest.approx(optimum(0.02, 100.0), rel=1e-3)
    assert said[0].between == pytest.approx(100.0, rel=1e-3)


def test_until_the_first_capture_it_is_what_the_attempts_before_paid(
    journal: Journal, tmp_path: Path
) -> None:
    """Else the pace would be the default one, and a run that fails more often would stand still."""
    found = paces(journal, tmp_path / "m", [0.1] * 20, "auto", FAILING)
    assert found == [(4, round(optimum(0.5, 100.0) / 0.1))]


def test_what_a_person_asked_for_stands(journal: Journal, tmp_path: Path) -> None:
    assert paces(journal, tmp_path / "m", [0.1] * 20, "30s", FAILING, [0.02]) == [(4, 300)]
    assert paces(journal, tmp_path / "n", [0.1] * 20, "7steps", FAILING, [0.02]) == []
