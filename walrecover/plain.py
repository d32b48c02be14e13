"""Plain state as msgpack: everything of a state tree that is not a tensor, without pickle.

Owns the tree's encoding. Python's own plain types come back as they were (tuples as tuples,
integer keys as integers, Counters as Counters); anything else goes through the caller's `leaf`,
which names it or refuses it. Decoding builds only the types listed here: it runs no code.

Wire form: None, bool, int, float, str and bytes stand for themselves; every container is a list
whose first item is its tag.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import msgspec

from walrecover.errors import Corrupt

Leaf = Callable[[Any, str], tuple[str, Any]]
Build = Callable[[str, Any], Any]
MAX_DEPTH = 100

_FACTORIES: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "int": int,
    "float": float,
    "set": set,
    "str": str,
    "tuple": tuple,
    "bool": bool,
    "": None,  # type: ignore[dict-item]
}


class Unstorable(TypeError):
    """An object that a snapshot cannot hold; the message names it by its key path."""


def refuse(value: Any, path: str) -> tuple[str, Any]:
    """Raises Unstorable."""
    kind = type(value)
    raise Unstorable(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which a snapshot cannot hold: attach "
        f"tensors, plain values, generators, or objects with state_dict() and load_state_dict()"
    )


def to_tree(value: Any, path: str, leaf: Leaf = refuse) -> Any:
    """The wire form of `value`. `path` names it in errors. Raises Unstorable."""
    return _to(value, path, leaf, 0)


def _to(value: Any, path: str, leaf: Leaf, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is bytes:
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return ["su", value.encode("utf-8", "surrogatepass")]
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else ["i", f"{value:x}"]
    if depth > MAX_DEPTH:
        raise Unstorable(f"{path} is nested deeper than {MAX_DEPTH} levels, or contains itself")
    if (
        kind is list
        or kind is tuple
        or kind is set
        or kind is frozenset
        or kind is collections.deque
    ):
        items = value
        tag = _TAGS[kind]
        if kind is set or kind is frozenset:
            items = sorted(value, key=repr)
        tree = [_to(item, f"{path}[{n}]", leaf, depth + 1) for n, item in enumerate(items)]
        return [tag, value.maxlen, tree] if kind is collections.deque else [tag, tree]
    if kind in (dict, collections.OrderedDict, collections.Counter, collections.defaultdict):
        pairs = [
            [
                _to(key, f"{path}<key {key!r}>", leaf, depth + 1),
                _to(item, f"{path}[{key!r}]", leaf, depth + 1),
            ]
            for key, item in value.items()
        ]
        if kind is collections.defaultdict:
            factory = value.default_factory
            name = "" if factory is None else getattr(factory, "__name__", "?")
            if _FACTORIES.get(name, refuse) is not factory:
                refuse(factory, f"{path}.default_factory")
            return ["dd", name, pairs]
        return [_TAGS[kind], pairs]
    if kind is complex:
        return ["c", value.real, value.imag]
    if kind is bytearray:
        return ["ba", bytes(value)]
    name, payload = leaf(value, path)
    return ["x", name, payload]


_TAGS: dict[type, str] = {
    list: "l",
    tuple: "t",
    set: "s",
    frozenset: "f",
    collections.deque: "q",
    dict: "d",
    collections.OrderedDict: "od",
    collections.Counter: "cn",
}


def _no_leaf(name: str, payload: Any) -> Any:
    raise Corrupt(f"plain state: nothing builds a {name!r}")


def from_tree(node: Any, build: Build = _no_leaf) -> Any:
    """The value of a wire form. Raises Corrupt for anything that `to_tree` does not write."""
    try:
        return _from(node, build)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise Corrupt(f"plain state: {error}") from None


def _from(node: Any, build: Build) -> Any:
    if type(node) is not list:
        if node is None or type(node) in (bool, int, float, str, bytes):
            return node
        raise Corrupt(f"plain state: a bare {type(node).__name__}")
    tag, *rest = node
    if tag in _SEQUENCES:
        (items,) = rest
        return _SEQUENCES[tag](_from(item, build) for item in _list(items))
    if tag in _MAPS:
        (pairs,) = rest
        return _MAPS[tag](_pairs(pairs, build))
    if tag == "dd":
        factory, pairs = rest
        return collections.defaultdict(_FACTORIES[factory], _pairs(pairs, build))
    if tag == "q":
        longest, items = rest
        return collections.deque((_from(item, build) for item in _list(items)), longest)
    if tag == "x":
        name, payload = rest
        return build(name, payload)
    if tag == "i":
        return int(rest[0], 16)
    if tag == "c":
        real, imaginary = rest
        return complex(real, imaginary)
    if tag == "ba" and type(rest[0]) is bytes:
        return bytearray(rest[0])
    if tag == "su":
        return rest[0].decode("utf-8", "surrogatepass")
    raise Corrupt(f"plain state: unknown tag {tag!r}")


def _list(items: Any) -> list[Any]:
    if type(items) is not list:
        raise Corrupt(f"plain state: {type(items).__name__} in place of items")
    return items


def _pairs(pairs: Any, build: Build) -> dict[Any, Any]:
    return {_from(key, build): _from(item, build) for key, item in map(_list, _list(pairs))}


_SEQUENCES: dict[str, Callable[..., Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_MAPS: dict[str, Callable[..., Any]] = {
    "d": dict,
    "od": collections.OrderedDict,
    "cn": collections.Counter,
}


def encode(tree: Any) -> bytes:
    return msgspec.msgpack.encode(tree)


def decode(data: bytes) -> Any:
    """Raises Corrupt."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"plain state: {error}") from None
