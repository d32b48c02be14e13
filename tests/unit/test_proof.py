"""When a resume is proven: every step of the overlap, and every state that was captured in it."""

from __future__ import annotations

import pytest

from walrecover.events import ResumeDiverged, ResumeVerified
from walrecover.proof import Past, Proof
from walrecover.twins import Facts

FACTS = Facts(position=(1,), lr=(0.1,), rng={}, scalars={"loss": 1.0})
LAST = 3


@pytest.fixture
def proof() -> Proof:
    past = {step: Past(1, FACTS, {"model": b"before"}) for step in range(1, LAST + 1)}
    return Proof(past)


def through(proof: Proof, last: int) -> None:
    for step in range(1, last + 1):
        assert proof.completed(step, FACTS) is None


def test_it_is_over_behind_the_last_step_that_was_done_before(proof: Proof) -> None:
    through(proof, LAST)
    assert not proof.is_over
    through(proof, LAST + 1)
    assert proof.is_over
    assert isinstance(proof.verdict(), ResumeVerified)


def test_a_state_whose_digests_come_late_is_waited_for(proof: Proof) -> None:
    """A saver tells them when it has voted, some steps behind the capture."""
    proof.expects(2)
    through(proof, LAST + 5)
    assert not proof.is_over
    found = proof.captured(2, {"model": b"another"})
    assert isinstance(found, ResumeDiverged)
    assert (found.step, found.what) == (2, "the state of model")
    assert proof.is_over


def test_a_capture_that_came_to_nothing_is_not_waited_for(proof: Proof) -> None:
    proof.expects(2)
    through(proof, LAST + 1)
    proof.captured(2, {})
    assert proof.is_over
    verdict = proof.verdict()
    assert isinstance(verdict, ResumeVerified)
    assert verdict.states == ()


def test_a_capture_behind_the_overlap_is_not_waited_for(proof: Proof) -> None:
    proof.expects(LAST + 1)
    through(proof, LAST + 1)
    assert proof.is_over
