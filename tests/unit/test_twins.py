"""Two executions of a step: each difference by its name, the cause before its effects."""

from __future__ import annotations

import math
from typing import Any

import pytest

from walrecover.consumed import Consumed
from walrecover.events import Code, ResumeDiverged, ResumeUnproven, ResumeVerified, StepCompleted
from walrecover.tiers import BOUND, OWN_WORKERS, ground
from walrecover.twins import differences, facts_of, near, objects_that_differ
from walrecover.verdicts import is_good, said

A, B = b"a" * 16, b"b" * 16


def step(**changes: Any) -> StepCompleted:
    given: dict[str, Any] = {
        "step": 7,
        "position": (2, 3),
        "consumed": (Consumed(0, 1, ((0, 8),), A),),
        "batch": A,
        "rng": {"torch": A, "numpy": A},
        "lr": (0.25,),
        "scalars": {"loss": 1.0, "accuracy": 0.5},
        "grad_norm": 3.0,
        "state": A,
    }
    return StepCompleted(**{**given, **changes})


def names(before: StepCompleted, after: StepCompleted, **options: Any) -> list[str]:
    one, other = (facts_of(event, opening=False) for event in (before, after))
    return [found.what for found in differences(one, other, {"torch", "numpy"}, **options)]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"position": (2, 4)}, "the data position"),
    ({"consumed": (Consumed(0, 1, ((0, 8),), B),)}, "the samples ([0].samples)"),
    ({"consumed": (Consumed(0, 1, ((1, 9),), A),)}, "the samples ([0].ranges[0][0])"),
    ({"batch": B}, "the batch"),
    ({"rng": {"torch": B, "numpy": A}}, "the random state of torch"),
    ({"lr": (0.5,)}, "the learning rate"),
    ({"scalars": {"loss": math.nextafter(1.0, 2), "accuracy": 0.5}}, "loss"),
    ({"grad_norm": 3.5}, "grad_norm"),
    ({"scalars": {"loss": 1.0, "accuracy": 0.6}}, "accuracy"),
    ({"state": B}, "the state of what moves in a step"),
]


@pytest.mark.parametrize("change, name", CHANGES)
def test_one_difference_is_told_alone_by_its_name(change: dict[str, Any], name: str) -> None:
    assert names(step(), step()) == []
    assert names(step(), step(**change)) == [name]


def test_causes_come_before_their_effects() -> None:
    after = step(
        position=(2, 4),
        batch=B,
        rng={"torch": B},
        lr=(0.5,),
        scalars={"loss": 2.0, "accuracy": 0.0},
        grad_norm=9.0,
    )
    assert names(step(), after) == [
        "the data position",
        "the batch",
        "the random state of torch",
        "the learning rate",
        "loss",
        "grad_norm",
        "accuracy",
    ]


def test_only_generators_that_are_used_and_moved_in_both_count() -> None:
    one = facts_of(step(rng={"torch": A, "python": A}), opening=False)
    other = facts_of(step(rng={"numpy": B, "python": B}), opening=False)
    assert list(differences(one, other, {"torch", "numpy"})) == []


@pytest.mark.parametrize(
    "one, other, equal",
    [
        (100.0, 100.9, True),
        (100.0, 102.0, False),
        (math.inf, math.inf, True),
        (math.inf, 1e300, False),
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (0.0, 1e-9, False),
    ],
)
def test_a_bound_is_relative_and_infinities_are_near_themselves(
    one: float, other: float, equal: bool
) -> None:
    assert near(one, other, BOUND) is equal
    assert (
        names(step(scalars={"loss": one}), step(scalars={"loss": other}), bound=BOUND) == []
    ) is equal


def test_a_scalar_that_one_side_lacks() -> None:
    less = step(scalars={"loss": 1.0})
    assert names(step(), less) == ["accuracy"]
    assert names(step(), less, common=True) == []


def test_objects_are_told_apart_by_their_digests() -> None:
    (found,) = objects_that_differ({"model": A, "optimizer": A}, {"model": A, "optimizer": B})
    assert found.what == "the state of optimizer"
    assert list(objects_that_differ({"model": A}, {"other": B})) == []


# --- tiers --------------------------------------------------------------------------------------

CODE = Code(python="3.11.9", threads=2, cpu="AVX512", libraries={"torch": "2.13.0"}, world=2)


def code(**changes: Any) -> Code:
    fields = {name: getattr(CODE, name) for name in CODE.__struct_fields__}
    return Code(**{**fields, **changes})


def test_the_same_machine_and_versions_give_an_exact_verdict() -> None:
    assert ground(CODE, code(argv=("other",))).tier == "exact"


@pytest.mark.parametrize(
    "change, why",
    [
        ({"threads": 1}, "threads was 2, is 1"),
        ({"libraries": {"torch": "2.14.0"}}, "torch was 2.13.0, is 2.14.0"),
        ({"inexact": ("cudnn.benchmark is on",)}, "cudnn.benchmark is on"),
    ],
)
def test_what_may_change_bits_makes_it_tolerant_and_is_named(
    change: dict[str, Any], why: str
) -> None:
    found = ground(CODE, code(**change))
    assert (found.tier, found.why, found.bound) == ("tolerant", (why,), BOUND)
    assert not found.states


def test_where_workers_draw_as_they_like_batches_and_losses_are_not_held_to_be_the_same() -> None:
    found = ground(CODE, code(inexact=(OWN_WORKERS,)))
    assert (found.tier, found.why) == ("tolerant", (OWN_WORKERS,))
    assert names(step(), step(batch=B, scalars={"loss": 9.0}), compared=found.compared) == []
    assert names(step(), step(lr=(0.5,)), compared=found.compared) == ["the learning rate"]
    other = step(consumed=(Consumed(0, 1, ((1, 9),), A),))
    assert names(step(), other, compared=found.compared) != []


def test_over_a_changed_world_only_what_does_not_depend_on_it_is_compared() -> None:
    between = ground(CODE, CODE, worlds={CODE.world, 3})
    assert (between.tier, between.states) == ("tolerant", False)
    assert between.why == (f"world size was 3 in between, is {CODE.world}",)
    assert ground(CODE, CODE, worlds={CODE.world}).tier == "exact"
    changed = ground(CODE, code(world=3))
    assert (changed.tier, changed.why) == ("tolerant", ("world size was 2, is 3",))
    assert changed.bound == 0  # no loss is compared, and none is said to be
    compared = changed.compared
    assert names(step(), step(batch=B, scalars={"loss": 9.0}), compared=compared) == []
    assert names(step(), step(position=(9,)), compared=compared) == ["the data position"]
    assert names(step(), step(lr=(0.5,)), compared=compared) == ["the learning rate"]


# --- what is said -------------------------------------------------------------------------------


def test_a_verdict_is_one_line_with_its_tier() -> None:
    verified = ResumeVerified(
        base=10, tier="exact", from_step=11, to_step=14, restored=A, states=(12,)
    )
    assert is_good(verified)
    assert said(verified) == (
        "resume verified to step 14: steps 11 to 14 are what they were; the state after step 10 is "
        f"the saved one ({A.hex()[:16]}); so is the whole state at step 12 (exact)"
    )
    alone = said(ResumeVerified(base=10, tier="exact", restored=A))
    assert alone.startswith("resume verified to step 10: the state after step 10 is the saved one")
    assert "no step was done twice" in alone
    diverged = ResumeDiverged(
        step=11, what="loss", before="1.0", after="2.0", attempt=3, tier="tolerant",
        why=("threads was 2, is 1",), bound=0.01,
    )  # fmt: skip
    assert not is_good(diverged)
    assert said(diverged) == (
        "resume diverged at step 11: loss was 1.0 in attempt 3, is 2.0 (tolerant, losses within "
        "0.01: threads was 2, is 1)"
    )
    unproven = ResumeUnproven(reason="the journal of attempt 1 is missing")
    assert not is_good(unproven)
    assert said(unproven) == "resume not proven: the journal of attempt 1 is missing"
