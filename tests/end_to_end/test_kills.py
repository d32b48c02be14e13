"""Mixed kills of char_gpt.py in one run, with warm restarts on.

At full size (200 kills, and the kernel's own OOM killer) this is `make torture-kills`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.campaigns import kills


@pytest.mark.slow(150)
@pytest.mark.timeout(3600)  # a minute where nothing else runs, but it starts torch 45 times
def test_twenty_mixed_kills_end_with_the_bits_of_an_undisturbed_run(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    counts = kills.campaign(kills.Plan(20, seed), tmp_path, None)
    assert counts["identical"], counts
    assert (counts["left_running"], counts["left_in_dev_shm"]) == ([], []), counts


@pytest.mark.slow(80)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("standby", ["imported", "parked"])
def test_a_run_that_goes_on_in_standbys_alone_ends_with_the_same_bits(
    tmp_path: Path, standby: str
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    plan = kills.Plan(3, seed, standby, warm=1.0, patience=300.0, steps=120)
    counts = kills.campaign(plan, tmp_path, None)
    assert counts["identical"], counts
    assert counts["starts"][standby] >= 3, counts
