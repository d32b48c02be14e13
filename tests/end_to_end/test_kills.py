"""Mixed kills of char_gpt.py in one run, with warm restarts on: 20 of them.

At full size (200 kills, and the kernel's own OOM killer) this is `make torture-kills`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.campaigns import kills


@pytest.mark.slow
def test_twenty_mixed_kills_end_with_the_bits_of_an_undisturbed_run(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    counts = kills.campaign(20, seed, tmp_path, None)
    assert counts["identical"], counts
    assert (counts["left_running"], counts["left_in_dev_shm"]) == ([], []), counts
    assert counts["starts"].get("imported", 0) >= 1, counts
