"""The state given back, held against the one that was saved: before anything moves.

Owns reading the living objects once more and comparing them with what the manifest says of each
tensor, and the snapshot of everything else. It does not trust the way by which they were restored:
an object whose own `load_state_dict` leaves something out is found, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xxhash import xxh3_128

from walrecover import plain, shards
from walrecover.manifest import by_object
from walrecover.session.restoring import Restored
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.objects import Attached, State
from walrecover.twins import RNG, STATE, Difference
from walrecover.values import first_difference


def compare(attached: Attached, restored: Restored) -> tuple[Difference | None, bytes]:
    """The first difference, and one digest of the state that stands now."""
    state = attached.capture()
    now = shards.digests(state.tensors)
    found = next(_objects(restored, state, now), None)
    return found, digest(state.tree, now)


def generators(restored: Restored) -> Difference | None:
    """The first global generator that does not stand where it was saved. Called last."""
    saved, now = rng.digests(restored.rng), rng.digests(rng.capture())
    for name in sorted(saved.keys() & now.keys()):
        if saved[name] != now[name]:
            return Difference(RNG + name, saved[name].hex(), now[name].hex())
    return None


def digest(tree: Mapping[str, Any], tensors: Mapping[str, str]) -> bytes:
    """xxh3-128 of a whole state: each object's."""
    hasher = xxh3_128()
    for name, one in sorted(by_object(tree, tensors).items()):
        hasher.update(name.encode() + b"\0" + one)
    return hasher.digest()


def _objects(restored: Restored, state: State, now: Mapping[str, str]) -> Iterator[Difference]:
    """Object by object, in the order of `attach`: what is not a tensor, then the tensors. What only
    one side has was allowed by `strict=False`."""
    saved = restored.stored.tree
    for name, tree in state.tree.items():
        if name not in saved or saved[name].get("kind") != tree["kind"]:
            continue
        if plain.encode(saved[name]) != plain.encode(tree):
            was, is_now = (plain.from_tree(one["state"], _leaf) for one in (saved[name], tree))
            if found := first_difference(was, is_now, name):
                what, before, after = found
                yield Difference(STATE + what, before, after)
    for name in state.tensors:
        if name in restored.digests and restored.digests[name] != now[name]:
            yield Difference(STATE + name, restored.digests[name], now[name])


def _leaf(kind: str, payload: Any) -> Any:
    """What only the torch adapter could build stands for itself; hashable, as it may be a key."""
    return (kind, *payload) if isinstance(payload, list) else (kind, payload)
