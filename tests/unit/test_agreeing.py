"""When rank 0 announces a pace: once it is known, and again only once the steps have changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.streams import create
from walrecover.journal import Journal
from walrecover.pace import parse
from walrecover.session.agreeing import MEASURED_STEPS, PACE_LOOK, Agreement
from walrecover.session.meeting import Meeting
from walrecover.torch_adapter.ranks import World


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with create(tmp_path) as journal:
        yield journal


def paces(journal: Journal, folder: Path, seconds: Iterable[float]) -> list[tuple[int, int]]:
    """Boundaries at which a pace was announced, and which, for steps of so many seconds."""
    meeting, signals = Meeting(folder, 0, 1), SimpleNamespace(received=None)
    said: list[Any] = []
    agreement = Agreement(meeting, signals, World(0, 1), journal, parse("30s"), said.append)  # type: ignore[arg-type]
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
