"""Where two histories part: the first step, and causes before effects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from walrecover.entries import Ancestor
from walrecover.events import Event, ScalarsArrived, ShardsWritten, StepCompleted
from walrecover.histories import Outcome, compare, shared, steps

BITS = 0.1 + 0.2


def step(n: int, **more: Any) -> StepCompleted:
    """Python's generator moves in every step; NumPy's only ever shows in an attempt's first."""
    found: dict[str, Any] = {"position": (n,), "lr": (0.1,), "scalars": {"loss": 1.0 / n}}
    found |= {"rng": {"python": bytes([n % 251])}}
    return StepCompleted(step=n, **(found | more))


def run(*events: Event, attempts: int = 1) -> Iterator[tuple[Any, Event]]:
    size = -(-len(events) // attempts)
    return ((place // size, event) for place, event in enumerate(events))


def plain(last: int, **at: Event) -> list[Event]:
    return [at.get(f"at{n}", step(n)) for n in range(1, last + 1)]


def between(one: Iterable[Event], other: Iterable[Event], attempts: int = 1) -> Outcome:
    return compare(0, steps(run(*one, attempts=attempts)), steps(run(*other)))


def test_equal_histories_have_no_parting_however_many_attempts_made_them() -> None:
    opening = {f"at{n}": step(n, rng={"python": bytes([n]), "numpy": b"x"}) for n in (1, 51)}
    assert between(plain(100), plain(100)) == Outcome(None, 100, 100)
    assert between(plain(100, **opening), plain(100), attempts=2) == Outcome(None, 100, 100)
    assert between(plain(100), plain(60)) == Outcome(None, 60, 60)


@pytest.mark.parametrize("at", [1, 30, 64, 65, 200, 300])
@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"scalars": {"loss": BITS}}, "loss"),
        ({"lr": (0.1, 0.2)}, "the learning rate"),
        ({"rng": {"python": b"other"}}, "the random state of python"),
        ({"position": (7, 7), "scalars": {"loss": 9.0}}, "the data position"),
    ],
)
def test_the_first_step_that_differs_is_found(at: int, changed: dict[str, Any], what: str) -> None:
    other = plain(300, **{f"at{at}": step(at, **changed)})
    outcome = between(plain(300), other)
    assert outcome.parting is not None
    assert (outcome.parting.step, outcome.parting.found[0].what) == (at, what)
    assert outcome.compared == at - 1


def test_a_generator_that_nobody_draws_from_is_no_difference() -> None:
    first = step(1, rng={"python": b"\x01", "numpy": b"a"})
    second = step(1, rng={"python": b"\x01", "numpy": b"b"})
    assert between(plain(9, at1=first), plain(9, at1=second)).parting is None
    moved = {"at5": step(5, rng={"python": b"\x05", "numpy": b"m"})}
    outcome = between(plain(9, at1=first, **moved), plain(9, at1=second, **moved))
    assert outcome.parting is not None and outcome.parting.step == 1


def test_scalars_that_came_late_and_states_that_were_captured_count() -> None:
    late = [step(1, scalars={}), step(2), ScalarsArrived(step=1, scalars={"loss": 1.0})]
    other = [step(1, scalars={}), step(2), ScalarsArrived(step=1, scalars={"loss": BITS})]
    assert between(late, late).parting is None
    outcome = between(late, other)
    assert outcome.parting is not None and outcome.parting.found[0].what == "loss"
    one = ShardsWritten(step=2, files=(), state={"model": b"a", "optimizer": b"c"})
    two = ShardsWritten(step=2, files=(), state={"model": b"b", "optimizer": b"c"})
    outcome = between([*plain(2), one, step(3)], [*plain(2), two, step(3)])
    assert outcome.parting is not None
    assert [found.what for found in outcome.parting.found] == ["the state of model"]


def test_steps_that_only_one_has_are_passed_over() -> None:
    assert between(plain(5)[2:], plain(4)) == Outcome(None, 2, 4)
    assert between(plain(5)[4:], plain(4)) == Outcome(None, 0, 0)


def stretch(run: str, number: int, base: int, cut: int | None) -> Ancestor:
    return Ancestor(run, number, f"{number}", base, cut)


def test_a_fork_shares_its_parents_history_through_the_step_at_which_it_was_forked() -> None:
    parent = (stretch("a", 2, 6, None), stretch("a", 1, 0, 6))
    fork = (stretch("b", 3, 8, None), stretch("a", 2, 6, 8), stretch("a", 1, 0, 6))
    assert shared(parent, fork) == shared(fork, parent) == 8
    other = (stretch("c", 2, 4, None), stretch("a", 1, 0, 4))
    assert shared(fork, other) == 4
    assert shared(parent, (stretch("b", 1, 0, None),)) == 0
    assert shared((), parent) == 0
