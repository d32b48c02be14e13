"""The global generators: captured as plain values, restored to the bit, digested apart."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from walrecover import plain
from walrecover.errors import Corrupt
from walrecover.torch_adapter import rng


def draw() -> list[float]:
    """From every generator, and from both of Python's and NumPy's distributions that keep half of
    a pair for the next call."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        float(torch.rand(())),
        *torch.randn(17).tolist(),
    ]


@pytest.mark.parametrize("before", [0, 1, 2, 700])
def test_every_generator_comes_back(before: int) -> None:
    for _ in range(before):
        draw()
    state = rng.capture()
    stored = plain.from_tree(plain.decode(plain.encode(plain.to_tree(state, "rng"))))
    expected, digests = [draw() for _ in range(3)], rng.digests()
    draw()
    rng.restore(stored)
    assert [draw() for _ in range(3)] == expected
    assert rng.digests() == digests


def test_digests_tell_which_generator_moved() -> None:
    before = rng.digests()
    assert rng.digests() == before
    for name, move in {
        "python": random.random,
        "numpy": np.random.rand,
        "torch": lambda: torch.rand(1),
    }.items():
        move()
        after = rng.digests()
        assert {n for n in after if after[n] != before[n]} == {name}
        before = after


def test_half_of_a_pair_is_part_of_pythons_state() -> None:
    random.seed(1)
    without = rng.digests()["python"]
    random.gauss(0, 1)
    with_half = rng.digests()["python"]
    random.gauss_next = None  # type: ignore[attr-defined]
    random._inst.gauss_next = None  # type: ignore[attr-defined]
    assert len({without, with_half, rng.digests()["python"]}) == 3


def test_a_reseeded_numpy_is_still_read_in_its_place() -> None:
    np.random.seed(3)
    first = rng.digests()["numpy"]
    np.random.rand()
    assert rng.digests()["numpy"] != first
    np.random.seed(3)
    assert rng.digests()["numpy"] == first
    np.random.set_state(np.random.RandomState(3).get_state())
    assert rng.digests()["numpy"] == first


def test_a_generator_of_its_own() -> None:
    generator = torch.Generator().manual_seed(4)
    state = rng.generator_state(generator)
    drawn = torch.rand(5, generator=generator)
    rng.set_generator(generator, state)
    assert torch.equal(torch.rand(5, generator=generator), drawn)


@pytest.mark.parametrize(
    "state",
    [
        {"torch": b"short"},
        {"python": (3, b"short", None)},
        {"python": (9, b"\0" * 2500, None)},
        {"python": "text"},
        {"numpy": ("MT19937", b"\0" * 8, 1, 0, 0.0)},
        {"numpy": 3},
    ],
)
def test_a_state_that_does_not_fit_is_corrupt(state: dict[str, object]) -> None:
    with pytest.raises(Corrupt, match="random state"):
        rng.restore(state)


def test_numpy_is_not_imported_for_anybody() -> None:
    code = """
import sys
sys.modules["numpy"] = None  # nobody can import it
from walrecover.torch_adapter import rng
assert "numpy" not in rng.capture(), rng.capture().keys()
assert "numpy" not in rng.digests()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
