"""A snapshot of some ranks, given to another number of them.

Owns reading what every rank had saved, and making one rank's state of what `elastic` decides.
Nothing is changed by it: a state that cannot be dealt out is refused before any object is restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from walrecover import elastic, plain
from walrecover.consumed import Facts
from walrecover.elastic import Deal, Reads, Saved, Tensor, Where
from walrecover.entries import SnapshotRef
from walrecover.manifest import Manifest, Part
from walrecover.session.position import Known, Ledger, Position
from walrecover.torch_adapter import anew, rng
from walrecover.torch_adapter.objects import Stored

OF_RANKS = ("sample", "batch")  # the kinds of what a sampler of a rank's own gives out
UNKNOWN = Reads(elastic.OPAQUE, "an iterable")


def deal(
    manifest: Manifest,
    base: SnapshotRef,
    rests: Sequence[Any],
    rank: int,
    world: int,
    taken: Sequence[str] = (),
) -> Deal:
    """What rank `rank` of `world` gets. `rests`: everything of each saved rank that is no tensor.
    `taken`: objects that every rank takes from one by order. Raises Mismatch, Corrupt."""
    saved = [_saved(part, rest) for part, rest in zip(manifest.parts, rests, strict=True)]
    return elastic.deal(
        saved, rank, world, run=manifest.run, snapshot=base.manifest, taken=frozenset(taken)
    )


def _saved(part: Part, rest: Any) -> Saved:
    def build(kind: str, payload: Any) -> Any:
        """Devices and strides are each rank's own, and no part of what must agree."""
        if kind in ("tensor", "array"):
            at = part.tensors[payload[0] if kind == "tensor" else payload]
            return Tensor(at.dtype, at.shape, at.digest)
        if kind == "device":
            return str(payload).partition(":")[0]
        return (kind, *payload) if isinstance(payload, list) else (kind, payload)

    state = rest["state"]
    objects = state["objects"]
    return Saved(
        objects={name: plain.from_tree(item["state"], build) for name, item in objects.items()},
        kinds={name: item["kind"] for name, item in objects.items()},
        led=frozenset(name for name, item in objects.items() if item.get("led")),
        rng=plain.from_tree(state["rng"]),
        places=_places(state["position"]),
    )


def _places(tree: Any) -> tuple[Where, ...]:
    position = plain.from_tree(tree, lambda kind, payload: (kind, None))
    return tuple(
        Where(place["consumed"], place.get("length"), _reads(place["sources"]))
        for place in position["places"]
    )


def _reads(sources: Sequence[Mapping[str, Any]]) -> tuple[Reads, ...]:
    return tuple(Reads(*source["reads"]) if "reads" in source else UNKNOWN for source in sources)


def belongs_to_first(name: str, of_first: frozenset[str]) -> bool:
    """Whether a tensor is taken from rank 0: of a module whose buffers DDP hands out from there."""
    return any(name.startswith(f"{one}.") for one in of_first)


def dealt_rng(deal: Deal, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The global generators of a new rank: as its source had them, or drawn anew."""
    return {**kept, **anew.global_states(deal.seeds, kept)}


def dealt_objects(deal: Deal, stored: Stored) -> Stored:
    """The objects of a new rank, with the generators among them that are drawn anew."""
    tree, tensors = dict(stored.tree), dict(stored.tensors)
    for name, seed in deal.object_seeds.items():
        item = tree[name]
        state, more = anew.object_state(item["kind"], item["state"], tensors, name, seed)
        tree[name] = {**item, "state": state}
        tensors |= more
    return Stored(tree, tensors)


def dealt_position(deal: Deal, position: Position) -> Position:
    """The position of a new rank. What every prologue draws is what its source drew."""
    if deal.ended:
        last = position.places[-1]
        last.broken, last.length = True, None  # it is at its end, however long it is now
    readers = tuple((where, _of_others(known)) for where, known in position.ledger.readers)
    position.ledger = Ledger(position.ledger.step, readers)
    return position


def _of_others(known: Known) -> Known:
    """A reader whose facts are those of all ranks, or of none that there is now: what a sampler of
    each rank's own gave out, the new ranks' sampler gives out otherwise."""
    return replace(known, facts=Facts("")) if known.facts.kind in OF_RANKS else known


def digests(state: dict[str, Any], deal: Deal) -> dict[str, bytes]:
    """Of the generators that were drawn anew, for the journal."""
    return {name: digest for name, digest in rng.digests(state).items() if name in deal.seeds}
