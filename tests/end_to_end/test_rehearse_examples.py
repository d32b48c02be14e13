"""The main job in small: the examples, killed by `walrecover rehearse`, end with the same bits; and
what each notes of its samples in a file of its own is what the audit proves.

At full size this is `make torture-rehearse` and `make torture-proof`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.proof import exact, proofs
from tests.support.trained import agree
from walrecover.rundir import RunDir

ROOT = Path(__file__).parents[2]
SMALL = ["--layers", "1", "--width", "32"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow(90)
@pytest.mark.parametrize(
    ("kills", "epochs", "size", "command"),
    [
        pytest.param(
            10,
            4,
            30 * 16,
            [sys.executable, "examples/char_gpt.py", "--steps-per-epoch", "30", *SMALL],
            id="char_gpt",
        ),
        pytest.param(
            4,
            3,
            24 * 12,
            [*TORCHRUN, "examples/char_gpt_ddp.py", "--steps-per-epoch", "24", *SMALL],
            id="char_gpt_ddp",
        ),
        pytest.param(
            5,
            3,
            230,  # so that the last batch of an epoch is not full
            [sys.executable, "examples/augmented_images.py", "--pictures", "230", "--width", "4"],
            id="augmented_images",
        ),
    ],
)
def test_an_example_under_kills_ends_with_the_same_bits(
    kills: int, epochs: int, size: int, command: list[str], tmp_path: Path
) -> None:
    kept, ids = tmp_path / "kept", tmp_path / "ids"
    walrecover = [sys.executable, "-m", "walrecover.cli", "rehearse", "--json", "--keep", str(kept)]
    more = ["--epochs", str(epochs), "--ids", str(ids)]
    done = subprocess.run(
        [*walrecover, "--kills", str(kills), "--seed", "1", "--", *command, *more],
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

    run = RunDir(kept / "killed", "rehearsal")
    counted = agree(run, ids, epochs, size)
    assert counted["attempts"] > kills // 2
    found = proofs(run)
    assert exact(found), found
