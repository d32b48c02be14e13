"""Reading a plan's base back: every byte checked, then handed to the torch adapter.

Owns the way from a committed snapshot to objects, RNG and position. Raises Corrupt or Mismatch;
the caller says so in the journal (PlanFailed) and ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from walrecover import elastic, parallel, plain, shards, snapshot, stepcounts
from walrecover.elastic import Deal
from walrecover.entries import SnapshotRef
from walrecover.errors import Corrupt
from walrecover.events import Code
from walrecover.failpoints import failpoint
from walrecover.manifest import Manifest, Part, TensorAt
from walrecover.rundir import RunDir
from walrecover.saver import taking
from walrecover.session import dealing, replicas
from walrecover.session.position import (
    Place,
    Position,
    counts_from,
    counts_tree,
    ledger_from,
    ledger_tree,
)
from walrecover.session.replicas import Repair
from walrecover.stepcounts import Take
from walrecover.torch_adapter import memory, moving
from walrecover.torch_adapter.leaves import build_inline, inline
from walrecover.torch_adapter.objects import Stored


class From(NamedTuple):
    """Where tensors' bytes came from, and why an arena that was offered was not used."""

    arena: int
    disk: int
    refused: str


NOWHERE = From(0, 0, "")


class Restored(NamedTuple):
    """What this rank gets back. `digests`: of its tensors by name, as the manifest has them.
    `part`: its vote in the snapshot, None where another number of ranks took that."""

    step: int
    stored: Stored
    rng: dict[str, Any]
    position: Position
    code: Code | None
    repair: Repair | None = None
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = {}
    deal: Deal | None = None
    saved_by: int = 0
    part: Part | None = None
    source: From = NOWHERE


def read(
    run: RunDir,
    base: SnapshotRef,
    rank: int,
    world: int,
    *,
    take: Take | None = None,
    strict: bool = True,
) -> Restored:
    """This rank's part of a snapshot, each digest checked as it is read; where another number of
    ranks saved it, what it is dealt.

    Where step counts disagree over the ranks: what `take` orders, a Mismatch without an order, a
    note where not `strict`.
    """
    manifest = snapshot.load_manifest(run, base)
    resized = manifest.world != world
    source = elastic.source_of(rank, manifest.world) if resized else rank
    rest = _rest(run, manifest, source)
    try:
        objects = dict(rest["state"]["objects"])
        kinds = {name: item["kind"] for name, item in objects.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{_own(manifest, source)}: no {error} in it") from None
    found = replicas.disagreement(run, manifest, kinds)
    repair: Repair | None = None
    notes: tuple[str, ...] = ()
    if (found and strict) or (take is not None and (found or (resized and take.names))):
        repair = replicas.repair(manifest, found, kinds, take)
        if repair.rank != source:
            other = _rest(run, manifest, repair.rank)["state"]["objects"]
            objects |= {name: other[name] for name in repair.names}
    elif found:
        notes = (f"step counts that agree: {stepcounts.said(found)}; each rank keeps its own",)
    deal = _deal(run, manifest, base, rank, world, repair) if resized else None
    own = _own_tensors(manifest, source, repair, deal.of_first if deal else frozenset())
    if resized:
        taking.leave(run, base, range(rank, manifest.world, world))
    held = taking.NOTHING if resized else taking.take(run, base, rank, world)
    tensors, came = _tensors(run, manifest, own, held)
    failpoint("restore.read")
    try:
        state = rest["state"]
        restored = Restored(
            base.step,
            Stored(objects, tensors),
            plain.from_tree(state["rng"]),
            position_from(state["position"]),
            msgspec.convert(state["code"], Code),
            repair,
            notes,
            {name: at.digest for name, at in own.items()},
            part=None if resized else manifest.parts[rank],
            source=came,
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise Corrupt(f"{_own(manifest, source)}: no {error} in it") from None
    return restored if deal is None else _dealt(restored, deal, manifest.world)


def _deal(
    run: RunDir,
    manifest: Manifest,
    base: SnapshotRef,
    rank: int,
    world: int,
    repair: Repair | None,
) -> Deal:
    rests = [_rest(run, manifest, n) for n in range(manifest.world)]
    try:
        names = repair.names if repair else ()
        return dealing.deal(manifest, base, rests, rank, world, names)
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{manifest.name}: no {error} in it") from None


def _dealt(restored: Restored, deal: Deal, saved_by: int) -> Restored:
    return restored._replace(
        stored=dealing.dealt_objects(deal, restored.stored),
        rng=dealing.dealt_rng(deal, restored.rng),
        position=dealing.dealt_position(deal, restored.position),
        deal=deal,
        saved_by=saved_by,
    )


def _own(manifest: Manifest, rank: int) -> str:
    return f"{manifest.name}/rank-{rank:05d}.msgpack"


def _rest(run: RunDir, manifest: Manifest, rank: int) -> Any:
    """Everything of a rank that is not a tensor."""
    part = manifest.parts[rank]
    own = _own(manifest, rank)
    if own not in part.files:
        raise Corrupt(f"{manifest.name}: the vote of rank {rank} names no {own}")
    return plain.decode(shards.read_plain(run.snapshots, own, part.files[own]))


def _own_tensors(
    manifest: Manifest, rank: int, repair: Repair | None, of_first: frozenset[str]
) -> dict[str, TensorAt]:
    """A rank's tensors: those of modules in `of_first` from rank 0, those of repaired objects from
    the rank that they are taken from."""
    first, own = manifest.parts[0].tensors, manifest.parts[rank].tensors
    own = {n: first[n] if dealing.belongs_to_first(n, of_first) else at for n, at in own.items()}
    if repair is None:
        return own
    theirs = manifest.parts[repair.rank].tensors
    return {
        name: at
        for source, taken in ((own, False), (theirs, True))
        for name, at in source.items()
        if any(replicas.belongs(name, one) for one in repair.names) is taken
    }


def _tensors(
    run: RunDir, manifest: Manifest, own: Mapping[str, TensorAt], held: taking.Source
) -> tuple[dict[str, Any], From]:
    """Each as (byte tensor, dtype, shape): part of what is held in memory, where that has its
    bytes, else read. Names of the same bytes share them."""
    found: dict[tuple[str, str], Any] = {}
    missing: dict[tuple[str, str], tuple[str, TensorAt]] = {}
    for name, at in own.items():
        key = at.file, at.key
        place = held.places.get(at.digest)
        if place is not None and held.memory is not None:
            found[key] = moving.part_of(held.memory, *place)
        else:
            missing[key] = name, at
    from_arena = sum(tensor.numel() for tensor in found.values())
    found |= _from_disk(run, manifest, missing)
    everything = sum(tensor.numel() for tensor in found.values())
    came = From(from_arena, everything - from_arena, held.refused)
    return {name: (found[at.file, at.key], at.dtype, at.shape) for name, at in own.items()}, came


def _from_disk(
    run: RunDir, manifest: Manifest, missing: Mapping[tuple[str, str], tuple[str, TensorAt]]
) -> dict[tuple[str, str], Any]:
    sizes = manifest.files()
    with contextlib.ExitStack() as stack:
        opened = {
            file: stack.enter_context(shards.Shard(run.snapshots, file, sizes[file]))
            for file in {file for file, _ in missing}
        }
        sizes_of = [opened[at.file].size_of(at) for _, at in missing.values()]
        found = dict(zip(missing, moving.fresh(sizes_of), strict=True))

        def read(key: tuple[str, str]) -> None:
            name, at = missing[key]
            opened[at.file].read(name, at, memory.view_of(found[key]))

        parallel.in_threads(read, list(missing), sum(sizes_of))
    return found


def position_tree(position: Position) -> Any:
    """The wire form of a position. Raises Unstorable for a loader whose state cannot be kept."""
    return plain.to_tree(
        _fields(position)
        | {
            "places": [_fields(place) for place in position.places],
            "ledger": ledger_tree(position.ledger),
        },
        "position",
        inline,
    )


def _fields(struct: Place | Position) -> dict[str, Any]:
    return msgspec.structs.asdict(struct) | {"passes": counts_tree(struct.passes)}


def position_from(tree: Any) -> Position:
    """The position of a wire form. Raises Corrupt."""
    value = plain.from_tree(tree, build_inline)
    try:
        places = [Place(**_with_counts(place)) for place in value["places"]]
        ledger = ledger_from(value.get("ledger", []))
        return Position(**(_with_counts(value) | {"places": places, "ledger": ledger}))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"position: {error}") from None


def _with_counts(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"passes": counts_from(fields.get("passes", ()))}
