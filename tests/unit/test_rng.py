"""The global generators: captured as plain values, restored to the bit, digested apart."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import numpy as np
import numpy.random
import pytest
import torch

from walrecover import plain
from walrecover.errors import Corrupt
from walrecover.torch_adapter import rng, twisters


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
    expected, digests = [draw() for _ in range(3)], rng.digests(rng.capture())
    draw()
    rng.restore(stored)
    assert [draw() for _ in range(3)] == expected
    assert rng.digests(rng.capture()) == digests


def test_digests_tell_which_generator_moved() -> None:
    before = rng.digests(rng.capture())
    assert rng.digests(rng.capture()) == before
    for name, move in {
        "python": random.random,
        "numpy": np.random.rand,
        "torch": lambda: torch.rand(1),
    }.items():
        move()
        after = rng.digests(rng.capture())
        assert {n for n in after if after[n] != before[n]} == {name}
        before = after


def test_half_of_a_pair_is_part_of_pythons_state() -> None:
    random.seed(1)
    without = rng.digests(rng.capture())["python"]
    random.gauss(0, 1)
    with_half = rng.digests(rng.capture())["python"]
    random.gauss_next = None  # type: ignore[attr-defined]
    random._inst.gauss_next = None  # type: ignore[attr-defined]
    assert len({without, with_half, rng.digests(rng.capture())["python"]}) == 3


def test_half_of_a_pair_is_part_of_numpys_state() -> None:
    np.random.seed(1)
    np.random.standard_normal()
    with_half = rng.digests(rng.capture())["numpy"]
    np.random.standard_normal()
    assert rng.digests(rng.capture())["numpy"] != with_half


@pytest.mark.parametrize("drawn", [0, 1, 2, 623, 624, 625])
def test_what_is_read_in_memory_is_what_the_generators_say(drawn: int) -> None:
    random.seed(drawn)
    np.random.seed(drawn)
    for _ in range(drawn):
        random.gauss(0, 1)
        np.random.standard_normal()
    ours, theirs = twisters.python(), twisters.numpy(np.random)
    assert ours is not None  # or every step costs 10 µs more
    assert theirs is not None  # or 32 µs
    packed, gauss = ours
    index, *words = struct.unpack("<625I", packed)
    assert (3, (*words, index), gauss) == random.getstate()
    packed, *pending = theirs
    *words, index = struct.unpack("<625I", packed)
    _, key, *rest = np.random.get_state()
    assert (words, [index, *pending]) == (list(key), rest)


def test_where_nothing_is_found_in_memory_the_generators_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw()
    read = rng.capture()
    monkeypatch.setattr(twisters, "python", lambda: None)
    monkeypatch.setattr(twisters, "numpy", lambda module: None)
    assert rng.capture() == read


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_another_generator_under_numpys_functions(kind: str) -> None:
    usual = np.random.get_bit_generator()
    np.random.set_bit_generator(getattr(np.random, kind)(7))
    try:
        test_every_generator_comes_back(3)
        before = rng.digests(rng.capture())
        np.random.rand()
        assert rng.digests(rng.capture())["numpy"] != before["numpy"]
    finally:
        np.random.set_bit_generator(usual)
    assert rng.capture()["numpy"][0] == "MT19937"


def test_a_reseeded_numpy_is_still_read_in_its_place() -> None:
    np.random.seed(3)
    first = rng.digests(rng.capture())["numpy"]
    np.random.rand()
    assert rng.digests(rng.capture())["numpy"] != first
    np.random.seed(3)
    assert rng.digests(rng.capture())["numpy"] == first
    np.random.set_state(np.random.RandomState(3).get_state())
    assert rng.digests(rng.capture())["numpy"] == first


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
from walrecover.torch_adapter import rng, twisters
assert "numpy" not in rng.capture(), rng.capture().keys()
assert "numpy" not in rng.digests(rng.capture())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
