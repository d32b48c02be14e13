"""Finding a step's events in a stream, without reading all that lies before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import streams
from walrecover.events import ScalarsArrived, StepCompleted
from walrecover.resumes import steps_of
from walrecover.rundir import RunDir
from walrecover.state import StreamKey

KEY = StreamKey(*streams.STREAM)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """1,999 steps from the second on; scalars of one that came two steps later."""
    found = RunDir(tmp_path_factory.mktemp("run"), "test")
    found.create()
    with streams.create(found.journal) as journal:
        for step in range(2, 2001):
            journal.append(StepCompleted(step=step))
            if step == 1002:
                journal.append(ScalarsArrived(step=1000, scalars={"loss": 0.5}))
    return found


@pytest.mark.parametrize("first, last", [(2, 3), (1000, 1000), (1, 2000), (1990, 2500)])
def test_all_steps_of_a_span_are_found_wherever_it_lies(run: RunDir, first: int, last: int) -> None:
    found = [e.step for e in steps_of(run)(KEY, first, last) if isinstance(e, StepCompleted)]
    wanted = list(range(max(2, first), min(2000, last) + 1))
    assert [step for step in found if first <= step <= last] == wanted
    assert len(found) <= len(wanted) + 600  # no more is read than around them


def test_what_came_later_for_a_step_is_found_with_it(run: RunDir) -> None:
    found = list(steps_of(run)(KEY, 1000, 1000))
    assert any(isinstance(event, ScalarsArrived) and event.step == 1000 for event in found)


def test_a_stream_that_is_not_there_gives_nothing(run: RunDir, tmp_path: Path) -> None:
    assert list(steps_of(run)(StreamKey(9, "0000", "rank-0"), 1, 9)) == []
    assert list(steps_of(RunDir(tmp_path, "other"))(KEY, 1, 9)) == []
