"""What usually makes a script another one each time, by what differs first."""

from __future__ import annotations

import pytest

from walrecover.rehearse.usual import causes


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("the data position", "seeds"),
        ("the samples ([0].samples)", "set"),
        ("the batch", "workers"),
        ("the random state of torch", "seeds"),
        ("the learning rate", "schedule"),
        ("loss", "atomics"),
        ("grad_norm", "cudnn.benchmark"),
        ("model.0.weight", "atomics"),
    ],
)
def test_each_first_difference_has_its_usual_causes(what: str, word: str) -> None:
    assert word in " ".join(causes(what))
