"""The main job in small: the examples, killed by `walrecover rehearse`, end with the same bits.

At full size (100 and 20 kills) this is `make torture-rehearse`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--layers", "1", "--width", "32"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "command"),
    [
        pytest.param(
            10,
            [sys.executable, "examples/char_gpt.py", "--epochs", "4", "--steps-per-epoch", "30"],
            id="char_gpt",
        ),
        pytest.param(
            4,
            [*TORCHRUN, "examples/char_gpt_ddp.py", "--epochs", "3", "--steps-per-epoch", "24"],
            id="char_gpt_ddp",
        ),
    ],
)
def test_an_example_under_kills_ends_with_the_same_bits(kills: int, command: list[str]) -> None:
    walrecover = [sys.executable, "-m", "walrecover.cli", "rehearse", "--json"]
    done = subprocess.run(
        [*walrecover, "--kills", str(kills), "--seed", "1", "--", *command, *SMALL],
        cwd=ROOT,
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True,
        text=True,
    )
    body = json.loads(done.stdout)
    assert (done.returncode, body["identical"]) == (0, True), done.stdout + done.stderr
    landed = [kill for kill in body["kills"] if kill["landed"]]
    assert len(landed) == kills
    assert sum(kill["phase"] == "snapshot" for kill in landed) * 5 >= kills
