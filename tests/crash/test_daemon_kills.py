"""A serving daemon is killed over and over while journals grow: nothing lost, nothing twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.daemon_kills import kill_over_and_over

KILLS = 20


@pytest.mark.slow
def test_killed_20_times_under_load_the_daemon_loses_nothing_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    done = kill_over_and_over(tmp_path, KILLS, random.Random(1))
    assert done["daemons"] == KILLS
    assert done["events"] > KILLS
