"""A logger's curve over crashes, cut at the first superseded step and not cut (the example's)."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.forkserver import ForkServer

STEPS = 40
LOGGED = (13, 0)
"""By each attempt. Every fifth step is saved: the second begins again with 11."""


def curve(folder: Path) -> list[tuple[int, float]]:
    """As TensorBoard reads it."""
    found = EventAccumulator(str(folder / "curves"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars("loss")]


def run(server: ForkServer, folder: Path, *arguments: str) -> None:
    folder.mkdir()
    for logged in LOGGED:
        child = server.start(
            "tests.end_to_end.scripts.curve:main",
            folder=folder,
            output=folder / "output",
            env={"WALRECOVER_EVERY": "5steps", "WALRECOVER_RUN": "curve"},
            arguments=list(arguments),
            logged=logged,
        )
        expected = -signal.SIGKILL if logged else 0
        assert child.wait() == expected, (folder / "output").read_text()


@pytest.mark.slow
def test_a_curve_that_is_cut_where_a_resume_begins_has_every_step_once(
    server: ForkServer, folder: Path
) -> None:
    run(server, folder / "cut")
    run(server, folder / "uncut", "--uncut")
    cut, uncut = curve(folder / "cut"), curve(folder / "uncut")
    assert [step for step, _ in cut] == list(range(1, STEPS + 1))
    again = Counter(step for step, _ in uncut)
    assert [step for step, times in again.items() if times > 1] == [11, 12, 13]
    assert dict(cut) == dict(uncut)
