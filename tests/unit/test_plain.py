"""Plain state: what a tree holds comes back with its types, and hostile bytes are Corrupt."""

from __future__ import annotations

import collections
import contextlib
import math
import struct
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover import plain
from walrecover.errors import Corrupt


def round_trip(value: Any) -> Any:
    return plain.from_tree(plain.decode(plain.encode(plain.to_tree(value, "state"))))


def same(one: Any, other: Any) -> bool:
    """Equal with equal types at every depth, to the bits of a float and the order of a dict."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, collections.defaultdict) and one.default_factory != other.default_factory:
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, collections.deque) and one.maxlen != other.maxlen:
        return False
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        keys = collections.Counter(map(_key, one)), collections.Counter(map(_key, other))
        return keys[0] == keys[1]
    return bool(one == other)


def _key(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


texts = st.text(st.characters(exclude_categories=()))  # lone surrogates too
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 300), 1 << 300)
    | st.floats()
    | st.complex_numbers(allow_nan=True)
    | texts
    | st.binary()
)
keys = st.integers() | texts | st.binary() | st.booleans() | st.tuples(st.integers(), texts)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    maps = st.dictionaries(keys, inner, max_size=4)
    lists = st.lists(inner, max_size=4)
    return (
        lists
        | lists.map(tuple)
        | maps
        | maps.map(collections.OrderedDict)
        | maps.map(collections.Counter)
        | maps.map(lambda m: collections.defaultdict(list, m))
        | maps.map(lambda m: collections.defaultdict(None, m))
        | st.builds(collections.deque, lists, st.none() | st.integers(4, 9))
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.binary().map(bytearray)
    )


trees = st.recursive(scalars, _containers, max_leaves=20)


@given(trees)
def test_every_storable_tree_comes_back_with_its_types(tree: Any) -> None:
    assert same(round_trip(tree), tree)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_1234))[0],  # a NaN with a payload
        -0.0,
        5e-324,
        complex(math.nan, -0.0),
        (1 << 64) - 1,
        1 << 64,
        -(1 << 63),
        -(1 << 63) - 1,
        [10 ** (sys.int_info.default_max_str_digits + 700)],  # too long to be written in decimal
        "\ud800 alone",
        True,
        {1: "one", "1": "text", False: 0},
        {(1, (2, 3)): frozenset({1})},
        collections.Counter({3: 2, 7: 1}),
        collections.OrderedDict([(2, 0), (1, 0)]),
        collections.defaultdict(int, a=1),
        collections.deque([1, 2], maxlen=2),
        {"deep": [({"a": [(1,)]},)]},
        bytearray(b"\0\1"),
        [],
        (),
        {},
        set(),
    ],
)
def test_the_types_that_state_dicts_hold(value: Any) -> None:
    assert same(round_trip(value), value)


class Named(tuple[int, ...]):
    """A type that a snapshot would have to know the code of."""


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), r"state is a builtins\.object"),
        ({"a": [1, {"b": print}]}, r"state\['a'\]\[1\]\['b'\] is a builtins\.builtin_function"),
        ({"a": {3: Named((1,))}}, r"state\['a'\]\[3\] is a .*Named"),
        ({object: 1}, r"state<key <class 'object'>> is a builtins\.type"),
        (collections.defaultdict(lambda: 1), r"state\.default_factory is a builtins\.function"),
        ([memoryview(b"")], r"state\[0\] is a builtins\.memoryview"),
        ((x for x in ()), r"state is a builtins\.generator"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(plain.Unstorable, match=path) as raised:
        plain.to_tree(value, "state")
    assert isinstance(raised.value, TypeError)


def test_what_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(plain.Unstorable, match="deeper than 100 levels, or contains itself"):
        plain.to_tree(value, "state")


def test_a_leaf_of_the_callers_is_built_by_the_caller() -> None:
    tree = plain.to_tree({"at": 3 + 0j, "of": range(3)}, "state", lambda v, p: ("range", v.stop))
    assert plain.from_tree(tree, lambda name, stop: (name, range(stop)))["of"] == (
        "range",
        range(3),
    )
    with pytest.raises(Corrupt, match="nothing builds a 'range'"):
        plain.from_tree(tree)


# -- hostile bytes --------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_corrupt(data: bytes) -> None:
    _decode(data)


@given(trees, st.data())
def test_damaged_bytes_give_a_value_or_corrupt(tree: Any, data: st.DataObject) -> None:
    whole = bytearray(plain.encode(plain.to_tree(tree, "state")))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    _decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


wire = st.recursive(
    scalars.filter(lambda v: not isinstance(v, complex | int) or isinstance(v, bool))
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from(["l", "t", "s", "f", "q", "d", "od", "cn", "dd", "x", "i", "c", "ba", "su"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=12,
)


@given(st.sampled_from(["l", "q", "d", "dd", "cn", "i", "c", "ba", "su", "x"]), st.lists(wire))
def test_any_wire_form_gives_a_value_or_corrupt(tag: str, rest: list[Any]) -> None:
    with contextlib.suppress(Corrupt):
        plain.from_tree([tag, *rest])


@pytest.mark.parametrize(
    "node",
    [
        [],
        ["l"],
        ["l", "text"],
        ["l", [], []],
        ["l", {"a": 1}],
        {"a": 1},
        ["ba", 1 << 40],
        ["su", 5],
        ["su", b"\xff"],
        ["i", "no"],
        ["i", 5],
        ["c", 1.0],
        ["c", "1", "2"],
        ["d", [[1]]],
        ["d", [[["l", []], 1]]],
        ["dd", "print", []],
        ["dd", "__import__", []],
        ["q", -1, []],
        ["x", "os.system", "true"],
        ["unknown", 1],
        [["l"], 1],
        msgspec.msgpack.Ext(1, b""),
        ["l", [msgspec.msgpack.Ext(-1, b"")]],
    ],
)
def test_what_is_never_written_is_corrupt(node: Any) -> None:
    with pytest.raises(Corrupt, match="plain state"):
        plain.from_tree(node)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of four billion items
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000 + b"\xc0",
        b"\xa1\xff",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x01\x01",
    ],
    ids=["empty", "unused", "long", "wide", "fat", "deep", "text", "time", "more"],
)
def test_bytes_that_are_never_written_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="plain state"):
        plain.from_tree(plain.decode(data))


def _decode(data: bytes) -> None:
    try:
        value = plain.from_tree(plain.decode(data))
    except Corrupt:
        return
    assert same(round_trip(value), value)
