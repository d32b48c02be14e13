"""The comparison finds every planted difference, names it, and says the first one first."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from walrecover.rehearse.compare import (
    Difference,
    Final,
    Outcome,
    Superseded,
    Tensor,
    compare,
    used_generators,
    weights_digest,
)
from walrecover.twins import Facts
from walrecover.values import first_difference

STEPS, RANKS = 6, 2
DIGEST = "blake3:" + "0" * 64


def facts(step: int, rank: int = 0) -> Facts:
    return Facts(
        position=(1, step),
        lr=(0.1 / step,),
        # As the journal has them: all at the start of an attempt, then those that moved.
        rng={"torch": bytes([step, rank])} | ({"python": b"unseeded"} if step == 1 else {}),
        scalars={"loss": 1.0 / step, "accuracy": math.nan},
        opening=step == 1,
        more={"batch": bytes([step])},
    )


def plain(rank: int) -> dict[str, Any]:
    rng = {"python": (3, (1, 2), None), "torch": b"end"}
    begun = {"python": (3, (1, 2), None), "torch": b"begin"}
    place = {"ordinal": 0, "consumed": 3, "begin": begun, "item": dict(begun), "done": [True]}
    return {
        "objects": {
            "optimizer": {"kind": "optimizer", "state": {"lr": 0.1, "betas": (0.9, 0.99)}},
            "extra": {"kind": "dict", "state": {"best": [0.5, -0.0], 3: {1, 2}, "nan": math.nan}},
        },
        "rng": rng,
        "position": {"places": [place], "done": []},
    }


def outcome() -> Outcome:
    tensors = {
        "model.weight": Tensor(DIGEST, "float32", (2, 3)),
        "model.bias": Tensor(DIGEST, "float32", (3,)),
    }
    return Outcome(
        history=tuple({step: facts(step, rank) for step in range(1, STEPS + 1)} for rank in (0, 1)),
        superseded=(Superseded(4, 1, 1, facts(4, 1)), Superseded(5, 0, 1, facts(5))),
        final=Final(STEPS, (dict(tensors), dict(tensors)), (plain(0), plain(1))),
    )


def with_facts(run: Outcome, step: int, rank: int = 0, **changes: Any) -> Outcome:
    steps = dict(run.history[rank])
    steps[step] = steps[step]._replace(**changes)
    history = tuple(steps if n == rank else other for n, other in enumerate(run.history))
    return run._replace(history=history)


def with_tensor(run: Outcome, rank: int, name: str, tensor: Tensor | None) -> Outcome:
    tensors = [dict(mine) for mine in run.final.tensors]
    if tensor is None:
        del tensors[rank][name]
    else:
        tensors[rank][name] = tensor
    return run._replace(final=run.final._replace(tensors=tuple(tensors)))


def with_plain(run: Outcome, rank: int, change: Callable[[dict[str, Any]], None]) -> Outcome:
    states = copy.deepcopy(run.final.plain)
    change(states[rank])  # type: ignore[arg-type]
    return run._replace(final=run.final._replace(plain=states))


def test_a_run_is_identical_to_itself() -> None:
    assert compare(outcome(), outcome()) is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"position": (1, 9)}, "the data position"),
        ({"lr": (math.nextafter(0.1 / 3, 1),)}, "the learning rate"),
        ({"lr": ()}, "the learning rate"),
        ({"rng": {"torch": b"other"}}, "the random state of torch"),
        ({"scalars": {"loss": math.nextafter(1 / 3, 1), "accuracy": math.nan}}, "loss"),
        ({"more": {"batch": b"other"}}, "the batch"),
        ({"scalars": {"loss": 1 / 3}}, "accuracy"),
        ({"scalars": {"loss": 1 / 3, "accuracy": math.nan, "extra": 1.0}}, "extra"),
    ],
)
@pytest.mark.parametrize("rank", range(RANKS))
def test_what_differs_in_one_step_is_named(changes: dict[str, Any], what: str, rank: int) -> None:
    found = compare(outcome(), with_facts(outcome(), 3, rank, **changes))
    assert found is not None
    assert (found.step, found.rank, found.what, found.again) == (3, rank, what, False)
    assert found.calm != found.killed


def test_both_values_are_said() -> None:
    killed = with_facts(outcome(), 2, lr=(0.25,))
    assert compare(outcome(), killed) == Difference(2, 0, "the learning rate", "0.05", "0.25")


def test_minus_zero_is_not_zero_and_a_nan_is_itself() -> None:
    calm = with_facts(outcome(), 2, scalars={"loss": 0.0, "x": math.nan})
    killed = with_facts(outcome(), 2, scalars={"loss": -0.0, "x": math.nan})
    found = compare(calm, killed)
    assert found is not None
    assert (found.what, found.calm, found.killed) == ("loss", "0.0", "-0.0")


def test_what_only_one_of_them_records_is_not_compared() -> None:
    assert compare(outcome(), with_facts(outcome(), 3, more={"state": b"x"})) is None


def test_a_missing_step_is_named() -> None:
    short = dict(list(outcome().history[0].items())[:-1])
    killed = outcome()._replace(history=(short, outcome().history[1]))
    assert compare(outcome(), killed) == Difference(STEPS, 0, "the step", "completed", "absent")
    assert compare(killed, outcome()) == Difference(STEPS, 0, "the step", "absent", "completed")


def test_the_earliest_step_comes_first() -> None:
    killed = with_facts(outcome(), 5, position=(9, 9))
    killed = with_facts(killed, 2, rank=1, scalars={})
    found = compare(outcome(), killed)
    assert found is not None
    assert (found.step, found.rank) == (2, 1)


def test_within_a_step_causes_come_before_effects() -> None:
    changed = {"position": (9, 9), "rng": {"torch": b"x"}, "lr": (9.0,), "scalars": {}}
    order = []
    while changed:
        found = compare(outcome(), with_facts(outcome(), 3, **changed))
        assert found is not None
        order.append(found.what)
        changed.pop(next(iter(changed)))
    assert order[:3] == ["the data position", "the random state of torch", "the learning rate"]


def test_a_step_done_again_must_repeat_itself() -> None:
    first = Superseded(4, 1, 1, facts(4, 1)._replace(lr=(7.0,)))
    killed = outcome()._replace(superseded=(first,))
    assert compare(outcome(), killed) == Difference(
        4, 1, "the learning rate", "7.0", "0.025", again=True
    )


def test_a_scalar_that_a_kill_cut_off_on_its_way_from_a_device_is_no_difference() -> None:
    run = outcome()
    cut_off = Superseded(4, 1, 1, facts(4, 1)._replace(scalars={}))
    assert compare(outcome(), run._replace(superseded=(cut_off,))) is None
    assert compare(outcome(), with_facts(run, 4, scalars={})) is not None, "but here it is"


def test_a_step_that_was_never_done_again_is_not_compared() -> None:
    beyond = Superseded(STEPS + 3, 0, 1, facts(STEPS + 3)._replace(lr=(7.0,)))
    assert compare(outcome(), outcome()._replace(superseded=(beyond,))) is None


def test_another_number_of_ranks_differs() -> None:
    one = Outcome(outcome().history[:1], (), Final(STEPS, ({},), ({},)))
    found = compare(outcome(), one)
    assert found is not None
    assert (found.what, found.calm, found.killed) == ("the number of ranks", "2", "1")


# --- generators that nobody seeds ---------------------------------------------------------------


def unseeded(run: Outcome, seed: bytes) -> Outcome:
    """A run whose Python generator was never used, and so began anyhow."""
    run = with_facts(run, 1, rng={**run.history[0][1].rng, "python": seed})

    def change(state: dict[str, Any]) -> None:
        state["rng"]["python"] = seed
        state["position"]["places"][0]["begin"]["python"] = seed
        state["position"]["places"][0]["item"]["python"] = seed
        state["position"]["places"][0]["sources"] = [{"anywhere": {"python": seed, "torch": b""}}]

    return with_plain(run, 0, change)


def test_a_generator_that_nobody_uses_may_differ() -> None:
    assert used_generators(outcome()) == {"torch"}
    assert compare(unseeded(outcome(), b"one"), unseeded(outcome(), b"other")) is None


def test_a_generator_that_one_run_uses_must_not() -> None:
    moved = with_facts(unseeded(outcome(), b"other"), 3, rng={"torch": b"\3\0", "python": b"x"})
    found = compare(unseeded(outcome(), b"one"), moved)
    assert found is not None
    assert (found.step, found.what) == (1, "the random state of python")


def test_a_generator_that_moves_behind_the_last_step_is_used() -> None:
    def change(state: dict[str, Any]) -> None:
        state["rng"]["python"] = b"moved"

    found = compare(outcome(), with_plain(outcome(), 1, change))
    assert found is not None
    assert (found.step, found.rank, found.what) == (None, 1, "rng.python")


# --- the final state ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (None, "absent"),
        (Tensor("blake3:" + "1" * 64, "float32", (3,)), "blake3:" + "1" * 64),
        (Tensor(DIGEST, "float64", (3,)), "float64 of shape (3,)"),
        (Tensor(DIGEST, "float32", (1, 3)), "float32 of shape (1, 3)"),
    ],
)
@pytest.mark.parametrize("rank", range(RANKS))
def test_a_tensor_that_differs_is_named(tensor: Tensor | None, says: str, rank: int) -> None:
    found = compare(outcome(), with_tensor(outcome(), rank, "model.bias", tensor))
    assert found is not None
    assert (found.step, found.rank, found.what) == (None, rank, "model.bias")
    assert found.killed == says


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("objects", "optimizer", "state", "lr"), 0.2, "objects.optimizer.state.lr"),
        (("objects", "extra", "state", "best"), [0.5, 0.0], "objects.extra.state.best[1]"),
        (("objects", "extra", "state", 3), {1}, "objects.extra.state[3]"),
        (("objects", "extra", "kind"), "namespace", "objects.extra.kind"),
        (("rng", "torch"), b"other", "rng.torch"),
        (("position", "done"), [True], "the length of position.done"),
    ],
)
def test_plain_state_that_differs_is_named(path: tuple[Any, ...], value: Any, what: str) -> None:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    found = compare(outcome(), with_plain(outcome(), 1, change))
    assert found is not None
    assert (found.step, found.rank, found.what) == (None, 1, what)


def test_a_difference_of_the_journals_comes_before_that_of_the_ends() -> None:
    killed = with_tensor(outcome(), 0, "model.bias", None)
    found = compare(outcome(), with_facts(killed, 6, lr=(1.0,)))
    assert found is not None
    assert (found.step, found.what) == (6, "the learning rate")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (True, 1),
        ((1, 2), [1, 2]),
        ({1: "x"}, {1.0: "x"}),
        ({"a": 1}, {"b": 1}),
        ([1], [1, 2]),
        ({1, 2}, {1}),
        (None, 0),
        (b"x", "x"),
    ],
)
def test_values_of_another_type_or_shape_are_not_equal(one: Any, other: Any) -> None:
    same_keys = isinstance(one, dict) and one == other
    assert (first_difference(one, other, "x") is None) == same_keys
    assert first_difference(one, copy.deepcopy(one), "x") is None


def test_the_digest_of_the_weights_depends_on_names_and_bytes_alone() -> None:
    final = outcome().final
    backwards = tuple(dict(reversed(list(mine.items()))) for mine in final.tensors)
    assert weights_digest(final) == weights_digest(final._replace(tensors=backwards, step=99))
    assert weights_digest(final).startswith("blake3:")
    for tensor in (None, Tensor("blake3:" + "1" * 64, "float32", (3,))):
        changed = with_tensor(outcome(), 1, "model.bias", tensor).final
        assert weights_digest(changed) != weights_digest(final)
