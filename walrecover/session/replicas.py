"""Optimizers that stand at other step counts on one rank than on another: refused, or repaired.

Owns reading the counts of a snapshot, and which objects are taken from which rank where the person
has ordered it (WALRECOVER_TAKE_RANK). Every rank decides from the same manifest, so that all of
them come to the same end. A repair changes what an attempt restores, never a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from walrecover import shards, stepcounts
from walrecover.errors import BadInput, Mismatch
from walrecover.manifest import Manifest, Part, TensorAt
from walrecover.rundir import RunDir
from walrecover.stepcounts import Take
from walrecover.torch_adapter import memory

Found = dict[str, dict[int, float]]


class Repair(NamedTuple):
    """Objects that every rank takes from one, and why."""

    rank: int
    names: tuple[str, ...]
    reason: str


def disagreement(run: RunDir, manifest: Manifest, kinds: Mapping[str, str]) -> Found:
    """The optimizers whose step counts disagree, with each rank's. Reads only counts whose bytes
    differ between the ranks."""
    counters = [
        {
            name: names
            for name, names in stepcounts.counters(part.tensors).items()
            if kinds.get(name) in ("optimizer", "stateful")
        }
        for part in manifest.parts
    ]
    digests = [_digests(part, own) for part, own in zip(manifest.parts, counters, strict=True)]
    suspects = {
        name
        for own in digests
        for name in own
        if len({other[name] for other in digests if name in other}) > 1
    }
    if not suspects:
        return {}
    known: dict[str, float] = {}
    counts = []
    for part, own in zip(manifest.parts, counters, strict=True):
        counts.append(
            {
                name: max(_count(run, manifest, part.tensors[one], known) for one in names)
                for name, names in own.items()
                if name in suspects
            }
        )
    return stepcounts.disagreeing(counts)


def _digests(part: Part, counters: dict[str, list[str]]) -> dict[str, frozenset[str]]:
    return {
        name: frozenset(part.tensors[one].digest for one in names)
        for name, names in counters.items()
    }


def _count(run: RunDir, manifest: Manifest, at: TensorAt, known: dict[str, float]) -> float:
    if at.digest not in known:
        with shards.Shard(run.snapshots, at.file, manifest.files()[at.file]) as shard:
            tensor, view = memory.empty(shard.size_of(at))
            shard.read(at.key, at, view)
        known[at.digest] = float(memory.as_tensor(tensor, at.dtype, at.shape).max())
    return known[at.digest]


def repair(manifest: Manifest, found: Found, kinds: Mapping[str, str], take: Take | None) -> Repair:
    """What was ordered for this disagreement. Raises Mismatch where nothing was, or where the ranks
    are no replicas of each other."""
    if take is None:
        replicas = [name for name, kind in kinds.items() if kind in ("module", "tensor")]
        raise Mismatch(stepcounts.refusal(found, _differing(manifest, replicas)))
    if take.rank >= manifest.world:
        raise BadInput(f"WALRECOVER_TAKE_RANK names rank {take.rank} of {manifest.world} ranks")
    names = take.names or tuple(found)
    for name in names:
        if name not in kinds:
            known = ", ".join(kinds)
            raise BadInput(f"WALRECOVER_TAKE_RANK names {name}, which is not attached ({known})")
        for part in manifest.parts:
            if _form(part, name) != _form(manifest.parts[take.rank], name):
                raise Mismatch(
                    f"{name} of rank {part.rank} has other tensors than that of rank {take.rank}: "
                    f"these ranks are no replicas, and cannot take it from each other"
                )
    why = stepcounts.said(found) or "by order, for another number of ranks"
    return Repair(take.rank, names, why)


def _differing(manifest: Manifest, names: list[str]) -> list[str]:
    """Of these objects, those that all ranks hold in the same form and not with the same bytes."""
    differing = []
    for name in names:
        forms = [_form(part, name) for part in manifest.parts]
        contents = [_contents(part, name) for part in manifest.parts]
        if all(form == forms[0] for form in forms) and any(c != contents[0] for c in contents):
            differing.append(name)
    return differing


def _form(part: Part, name: str) -> dict[str, Any]:
    return {key: (at.dtype, at.shape) for key, at in part.tensors.items() if belongs(key, name)}


def _contents(part: Part, name: str) -> dict[str, str]:
    return {key: at.digest for key, at in part.tensors.items() if belongs(key, name)}


def belongs(tensor: str, name: str) -> bool:
    """Whether a tensor is part of the object of that name."""
    return tensor == name or tensor.startswith(f"{name}.")


__all__ = ["Repair", "belongs", "disagreement", "repair"]
