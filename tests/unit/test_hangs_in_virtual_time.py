"""Hours of recorded step times with hangs planted: a small share of `make torture-hangs`."""

from __future__ import annotations

import pytest

from tests.campaigns.hangs import holds, summary
from tests.support.hang_world import simulate


@pytest.mark.parametrize("seed", [1, 2])
def test_planted_hangs_are_found_in_time_and_stragglers_are_left_alone(seed: int) -> None:
    counts = simulate(seed, 25, hung=12, slow=8, asleep=4, hours_each=12.5)
    assert holds(counts), f"seed {seed}: {summary(counts)}"
