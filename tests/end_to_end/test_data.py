"""Random augmentation in loaders' workers, killed in mid-epoch: the same samples, and the same
draws for each, with any number of workers.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.attempt import KILL
from tests.support.forkserver import ForkServer
from tests.support.trial import KILLED, Trial

SCRIPT = "augmented:augmented"
PACE = {"WALRECOVER_EVERY": "4steps"}


def test_p5_workers_draw_what_they_would_have_drawn_whatever_their_number(
    server: ForkServer, folder: Path
) -> None:
    """Begun with two workers, killed in the second epoch, gone on with none."""
    whole = Trial(server, folder / "whole", SCRIPT, PACE)
    assert whole.run(workers=0).status == 0
    killed = Trial(server, folder / "killed", SCRIPT, PACE)
    assert killed.run((14, "step", KILL), workers=2).status == KILLED
    status, output = killed.run(workers=0)
    assert status == 0, output
    assert "resume verified to step 13" in output
    assert "tolerant" not in output
    assert killed.losses() == whole.losses()
    assert all(len(bits) == 1 for bits in killed.losses().values())
    assert killed.result() == whole.result()


def test_workers_left_to_themselves_are_never_called_exact(
    server: ForkServer, folder: Path
) -> None:
    trial = Trial(server, folder / "run", SCRIPT, PACE | {"WALRECOVER_WORKER_SEEDS": "own"})
    assert trial.run((14, "step", KILL), workers=2).status == KILLED
    status, output = trial.run(workers=2)
    assert status == 0, output
    assert "loaders' workers draw by themselves (WALRECOVER_WORKER_SEEDS=own)" in output
    assert "tolerant" in output
    assert any(len(bits) > 1 for bits in trial.losses().values())  # they did draw otherwise
