"""Any event comes back as it was, and the independent `msgpack` package reads the same."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover import events as ev
from walrecover.codec import chain_of, seal, unseal
from walrecover.entries import Plan, Rejected, SnapshotRef
from walrecover.errors import Corrupt

_integers = st.integers(min_value=-(2**63), max_value=2**64 - 1)
# NaN differs from itself; its bits are compared by a test of its own.
_floats = st.floats(allow_nan=False)
_text = st.text(max_size=20)
_bytes = st.binary(max_size=20)
for _type, _strategy in ((int, _integers), (float, _floats), (str, _text), (bytes, _bytes)):
    st.register_type_strategy(_type, _strategy)

_references = st.builds(SnapshotRef)
_plans = st.builds(
    Plan,
    base=st.none() | _references,
    rejected=st.lists(st.builds(Rejected), max_size=3).map(tuple),
)
_CHOSEN: dict[type, dict[str, Any]] = {ev.RecoveryPlanned: {"plan": _plans}}


def _strategy_of(annotation: Any) -> st.SearchStrategy[Any]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return _built(annotation)
    arguments = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(_strategy_of(arguments[0]), max_size=4).map(tuple)
        return st.tuples(*map(_strategy_of, arguments))
    if getattr(annotation, "__origin__", None) is dict:
        return st.dictionaries(*map(_strategy_of, arguments), max_size=4)
    if arguments:
        return st.one_of(*map(_strategy_of, arguments))
    return st.from_type(annotation)


def _built(kind: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    fields = {name: _strategy_of(hints[name]) for name in kind.__struct_fields__}  # type: ignore[attr-defined]
    return st.builds(kind, **(fields | _CHOSEN.get(kind, {})))


any_event = st.one_of(*map(_built, ev.EVENT_TYPES))


@given(any_event)
def test_an_event_comes_back_as_it_was(event: ev.Event) -> None:
    assert ev.decode(ev.encode(event)) == event


@given(any_event)
def test_msgpack_reads_what_was_written(event: ev.Event) -> None:
    decoded = msgpack.unpackb(ev.encode(event), strict_map_key=False)
    expected = msgspec.to_builtins(event, builtin_types=(bytes,), order=None)
    assert next(iter(decoded)) == "type"
    assert decoded == _lists(expected)


@given(any_event)
def test_what_msgpack_writes_is_read(event: ev.Event) -> None:
    """Another writer may order, and size its integers, as it likes."""
    decoded = msgpack.unpackb(ev.encode(event), strict_map_key=False)
    foreign = msgpack.packb(dict(reversed(decoded.items())), use_bin_type=True)
    assert ev.decode(foreign) == event


@given(
    any_event,
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
)
def test_the_envelope_gives_the_event_back(
    event: ev.Event, lsn: int, attempt: int, chain: bytes
) -> None:
    envelope = seal(ev.encode(event), lsn=lsn, attempt=attempt, chain=chain)
    assert ev.decode(unseal(envelope, lsn=lsn, attempt=attempt, chain=chain)) == event
    assert len(chain_of(envelope)) == 16


@given(st.binary(max_size=80))
def test_any_bytes_are_an_event_or_corrupt(payload: bytes) -> None:
    try:
        found = ev.decode(payload)
    except Corrupt:
        return
    assert isinstance(found, (ev.Unknown, *ev.EVENT_TYPES))


@given(st.text(min_size=1).filter(lambda name: name not in {k.__name__ for k in ev.EVENT_TYPES}))
def test_a_type_of_a_newer_release_is_kept(name: str) -> None:
    fields = {"type": name, "step": 7, "more": [1, {"x": b"y"}]}
    assert ev.decode(msgpack.packb(fields)) == ev.Unknown(name, fields)


@given(any_event)
def test_a_newer_optional_field_is_passed_over(event: ev.Event) -> None:
    decoded = msgpack.unpackb(ev.encode(event), strict_map_key=False)
    assert ev.decode(msgpack.packb({**decoded, "added later": [1]})) == event


def test_a_known_type_that_lacks_what_it_must_hold_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        ev.decode(msgpack.packb({"type": "StepCompleted"}))


def test_scalars_keep_their_bits() -> None:
    given_scalars = {"nan": math.nan, "zero": -0.0, "inf": -math.inf, "tiny": 5e-324}
    event = ev.decode(ev.encode(ev.StepCompleted(step=1, scalars=given_scalars)))
    assert isinstance(event, ev.StepCompleted)
    assert msgpack.packb(event.scalars) == msgpack.packb(given_scalars)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return value
