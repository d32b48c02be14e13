"""The difference between two descriptions: what is planted is found, and nothing else is."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.difference import Change, State, Tensor, compare, leaves_of
from walrecover.renames import Sign, pair, said


def tensor(of: object, shape: tuple[int, ...] = (2, 3), dtype: str = "float32") -> Tensor:
    return Tensor(dtype, shape, hashlib.sha256(repr(of).encode()).hexdigest())


def count(number: float) -> Tensor:
    return tensor(f"count {number}", ())._replace(number=number)


def whole(seed: int = 0, width: int = 3, layers: int = 3) -> dict[str, Any]:
    """The objects of a training, and what a snapshot holds beside them."""
    model = {}
    for n in range(layers):
        model[f"blocks.{n}.weight"] = tensor((seed, n, "w"), (width, 4))
        model[f"blocks.{n}.bias"] = tensor((seed, n, "b"), (width,))
    state = {
        number: {
            "step": count(100.0),
            "exp_avg": tensor((seed, name, "avg"), held.shape),
            "exp_avg_sq": tensor((seed, name, "sq"), held.shape),
        }
        for number, (name, held) in enumerate(model.items())
    }
    group = {"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": list(range(len(model)))}
    return {
        "model": model,
        "optimizer": {"state": state, "param_groups": [group]},
        "scheduler": {"last_epoch": 3, "milestones": {2: 1, 5: 1}},
        "record": {"losses": [0.5, 0.25], "best": float("nan"), "tag": "a"},
        "rng": {"torch": b"x" * 40, "python": (3, (1, 2, 3), None)},
        "position": {"places": [{"ordinal": 0, "consumed": 4}]},
        "step": 100,
    }


def state(tree: dict[str, Any], **more: Any) -> State:
    return State("a", (leaves_of(tree),), **{"own": "rng" in tree} | more)


def changes(a: State, b: State) -> list[tuple[str, str, str]]:
    return [(c.kind, c.path, c.other) for c in compare(a, b).changes]


def test_a_state_is_identical_to_itself() -> None:
    found = compare(state(whole()), state(copy.deepcopy(whole())))
    assert (found.verdict, found.changes, found.renamed, found.notes) == ("identical", (), (), ())
    assert found.compared == len(leaves_of(whole()))


# -- planted differences --------------------------------------------------------------------------


class Planted(NamedTuple):
    """What is done to the leaf of this path, and what must be said of it."""

    kind: str
    path: str


def plant(leaves: dict[str, Any], what: str, path: str) -> Planted:
    """Change one leaf of B in place."""
    leaf = leaves[path]
    if what == "remove":
        del leaves[path]
        return Planted("only in A", path)
    if what == "add":
        leaves[f"{path}_grown"] = tensor(f"new {path}", (7,))
        return Planted("only in B", f"{path}_grown")
    if not isinstance(leaf, Tensor):
        leaves[path] = tensor("in place of a value") if what == "shape" else ("changed", leaf)
        kinds = {"rng": "generator", "position": "generator", "step": "generator"}
        kind = kinds.get(path.partition(".")[0], "group" if ".param_groups." in path else "value")
        return Planted("kind" if what == "shape" else kind, path)
    if what == "shape":
        leaves[path] = leaf._replace(shape=(*leaf.shape, 1), digest="other")
        return Planted("shape", path)
    if what == "dtype":
        leaves[path] = leaf._replace(dtype="bfloat16", digest="other")
        return Planted("dtype", path)
    leaves[path] = leaf._replace(digest=f"other {path}")
    return Planted("step" if path.endswith(".step") else "tensor", path)


PLACES = sorted(leaves_of(whole()))
PLANTS = st.dictionaries(
    st.sampled_from(PLACES),
    st.sampled_from(["remove", "add", "shape", "dtype", "value"]),
    max_size=6,
)


@given(PLANTS)
def test_planted_differences_are_found_and_nothing_else_is(plants: dict[str, str]) -> None:
    a, b = leaves_of(whole()), leaves_of(whole())
    planted = {plant(b, what, path) for path, what in plants.items()}
    found = compare(State("a", (a,), own=True), State("b", (b,), own=True))
    assert {Planted(c.kind, c.path or c.other) for c in found.changes} == planted
    assert len(found.changes) == len(planted)
    assert found.renamed == ()
    assert found.verdict == ("different" if planted else "identical")


@given(PLANTS)
def test_the_difference_seen_from_the_other_side_is_the_same(plants: dict[str, str]) -> None:
    a, b = leaves_of(whole()), leaves_of(whole())
    for path, what in plants.items():
        plant(b, what, path)
    sides = State("a", (a,), own=True), State("b", (b,), own=True)
    there, back = compare(*sides), compare(*reversed(sides))
    turned = {"only in A": "only in B", "only in B": "only in A"}
    mirrored = {
        Change(turned.get(c.kind, c.kind), c.rank, c.other, c.path, c.b, c.a) for c in back.changes
    }
    assert set(there.changes) == mirrored


# -- renames --------------------------------------------------------------------------------------

WRAPPED = [
    ("", "module."),
    ("", "_orig_mod."),
    ("", "module._orig_mod."),
    ("module.", "_orig_mod."),
    ("", "state_dict."),
    ("", "backbone."),
    ("encoder.", "backbone.encoder_q."),
]


@given(st.sampled_from(WRAPPED), st.sampled_from(["model.", ""]), PLANTS, st.booleans())
def test_a_prefix_is_a_rename_and_hides_no_other_difference(
    prefixes: tuple[str, str], above: str, plants: dict[str, str], turned: bool
) -> None:
    a = {p: leaf for p, leaf in leaves_of(whole()).items() if p.startswith("model.")}
    b = dict(a)
    plants = {p: what for p, what in plants.items() if p in a and what in ("value", "dtype")}
    planted = {plant(b, what, path) for path, what in plants.items()}
    mine, its = reversed(prefixes) if turned else prefixes
    a = {above + mine + p.removeprefix("model."): leaf for p, leaf in a.items()}
    b = {above + its + p.removeprefix("model."): leaf for p, leaf in b.items()}
    found = compare(State("a", (a,)), State("b", (b,)))
    is_guess = "backbone." in (mine, its) or "encoder." in (mine, its)
    if not (is_guess and "dtype" in plants.values()):  # a guess needs equal forms
        assert len(found.renamed) == len(a)
        assert {rename.rule for _, rename in found.renamed} == {(mine, its)}
        assert {(c.kind, c.path) for c in found.changes} == {
            (kind, above + mine + path.removeprefix("model.")) for kind, path in planted
        }
    assert not planted or found.verdict == "different"


def test_wrappers_are_recognised_at_any_depth() -> None:
    names = [f"blocks.{n}.{kind}" for n in range(4) for kind in ("w", "b")]
    here = {name: Sign(1) for name in names}
    there = {f"module.{n.replace('.w', '._orig_mod.w')}": Sign(2) for n in names}
    found = pair(here, there)
    assert {r.here: r.there for r in found} == dict(zip(here, there, strict=True))
    assert said(found, "here", "there") == [
        "4 names differ by `module._orig_mod.`, which only there has",
        "4 names differ by `module.`, which only there has",
    ]


def test_names_that_could_be_either_of_two_are_not_paired() -> None:
    here = {"model.w": Sign("f"), "module.w": Sign("f")}
    assert pair(here, {"w": Sign("f")}) == []


def test_a_prefix_is_guessed_only_where_types_and_shapes_meet() -> None:
    here = {"fc.w": Sign("2×3"), "fc.b": Sign("2")}
    assert pair(here, {"head.w": Sign("2×4"), "head.b": Sign("4")}) == []
    assert len(pair(here, {"head.w": Sign("2×3"), "head.b": Sign("2")})) == 2


def test_a_single_name_is_paired_by_its_bytes_alone() -> None:
    assert pair({"fc.w": Sign("f", 1)}, {"head.w": Sign("f", 2)}) == []
    (found,) = pair({"fc.w": Sign("f", 1)}, {"head.w": Sign("f", 1)})
    assert (found.here, found.there) == ("fc.w", "head.w")
    (found,) = pair({"fc.w": Sign("f", 1)}, {"scale": Sign("f", 1)})
    assert said([found], "A", "B") == ["1 name differs by `fc.w` in A and `scale` in B"]


def test_ten_thousand_names_are_paired_at_once() -> None:
    names = [f"layers.{n}.{kind}.weight" for n in range(2500) for kind in "qkvo"]
    found = pair({n: Sign(1) for n in names}, {f"tower.{n}": Sign(1) for n in names})
    assert len(found) == 10_000


# -- optimizers -----------------------------------------------------------------------------------


def test_an_optimizer_over_the_same_parameters_in_another_order_is_said_so() -> None:
    tree = whole()
    moved = tree["optimizer"]["state"]
    moved[0], moved[2] = moved[2], moved[0]
    found = compare(state(whole()), state(tree)).changes
    assert [(c.kind, c.path, c.a, c.b) for c in found] == [
        ("order", "optimizer", "parameters 0, 2", "parameters 2, 0")
    ]


def test_parameter_groups_and_step_counts_are_said_with_their_values() -> None:
    tree = whole()
    tree["optimizer"]["param_groups"][0] |= {"lr": 0.2, "betas": (0.9, 0.99), "params": [0, 1]}
    tree["optimizer"]["state"][1]["step"] = count(99.0)
    found = compare(state(whole()), state(tree)).changes
    group = "optimizer.param_groups.0"
    assert [(c.kind, c.path, c.a, c.b) for c in found] == [
        ("group", f"{group}.lr", "0.1", "0.2"),
        ("group", f"{group}.betas", "[1]: 0.999", "[1]: 0.99"),
        ("group", f"{group}.params", "6 parameters", "2 parameters"),
        ("step", "optimizer.state.1.step", "100.0", "99.0"),
    ]


# -- sides that hold less -------------------------------------------------------------------------


def test_what_a_side_can_never_hold_is_noted_and_not_missing() -> None:
    tree = whole()
    file = {key: tree[key] for key in tree if key not in ("rng", "position", "step")}
    found = compare(state(tree), state(file))
    assert found.verdict == "identical"
    assert found.notes == ("B holds no generators and no data position of walrecover's",)
    tensors = {path: leaf for path, leaf in leaves_of(file).items() if isinstance(leaf, Tensor)}
    found = compare(state(tree), State("b", (tensors,), tensors_only=True))
    assert found.verdict == "identical"
    assert found.notes[0] == "B holds tensors only: plain values are not compared"


def test_a_model_that_was_just_built_is_compared_by_its_form() -> None:
    built = whole(seed=1)
    built["optimizer"] = {"state": {}, "param_groups": built["optimizer"]["param_groups"]}
    built["optimizer"]["param_groups"][0]["lr"] = 5.0
    built.pop("rng")
    assert compare(state(whole()), state(built, form_only=True)).verdict == "identical"
    built["model"]["blocks.0.bias"] = tensor("other", (9,))
    del built["model"]["blocks.1.bias"]
    built["optimizer"]["param_groups"][0]["params"] = [0]
    assert changes(state(whole()), state(built, form_only=True)) == [
        ("only in A", "model.blocks.1.bias", ""),
        ("shape", "model.blocks.0.bias", "model.blocks.0.bias"),
        ("group", "optimizer.param_groups.0.params", "optimizer.param_groups.0.params"),
    ]


def test_ranks_are_compared_one_by_one_and_what_they_share_is_said_once() -> None:
    a, b = leaves_of(whole()), leaves_of(whole())
    c = dict(b)
    b["model.blocks.0.bias"] = c["model.blocks.0.bias"] = tensor("both", (3,))
    c["record.tag"] = "b"
    found = compare(State("a", (a, a), own=True), State("b", (b, c), own=True))
    assert [(x.kind, x.rank, x.path) for x in found.changes] == [
        ("tensor", 0, "model.blocks.0.bias"),
        ("value", 1, "record.tag"),
    ]
    d = dict(b)
    d["model.blocks.0.bias"] = tensor("another", (3,))
    found = compare(State("a", (a, a), own=True), State("b", (b, d), own=True))
    assert [(x.kind, x.rank, x.path) for x in found.changes] == [
        ("tensor", 0, "model.blocks.0.bias"),
        ("tensor", 1, "model.blocks.0.bias"),
    ]
    found = compare(State("a", (a, a), own=True), State("b", (a,), own=True))
    assert found.notes == ("A has 2 ranks and B 1: compared are the first 1",)


@pytest.mark.parametrize(("a", "b"), [(0.0, -0.0), (1, True), (1, 1.0), ((1,), [1]), (b"a", "a")])
def test_plain_values_of_other_bits_or_types_differ(a: Any, b: Any) -> None:
    assert changes(state({"x": a}), state({"x": b})) == [("value", "x", "x")]


def test_objects_of_two_kinds_differ() -> None:
    a, b = State("a", ({},), kinds={"m": "module"}), State("b", ({},), kinds={"m": "dict"})
    assert [(c.kind, c.a, c.b) for c in compare(a, b).changes] == [("kind", "module", "dict")]
