"""Reading a rehearsal's run from its directory: its history, its end, how long things took.

Owns the way from journals, sequence and snapshots to what `compare` takes. Reads only; every
digest of the final snapshot is checked on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from walrecover import plain, recovery, shards, snapshot
from walrecover.errors import WalrecoverError
from walrecover.events import Event, ScalarsArrived, ShardsWritten, StepCompleted, Unknown
from walrecover.journal import Reader, find_streams
from walrecover.manifest import Manifest, TensorAt
from walrecover.rehearse.compare import Final, Outcome, Superseded, Tensor
from walrecover.rundir import RunDir
from walrecover.state import RunState, StreamKey
from walrecover.twins import Facts, facts_of, with_scalars

CHUNK_BYTES = 1 << 20


class Unfinished(WalrecoverError):
    """The run has no final snapshot."""


class Timing(NamedTuple):
    """How the undisturbed run went. Medians, in seconds; `longest`: between any two events."""

    steps: int
    step_seconds: float
    snapshot_seconds: float
    longest: float


def read_events(run: RunDir, prefix: str) -> Iterator[tuple[StreamKey, Event | Unknown]]:
    """All events of the streams whose writer's name begins so, stream by stream."""
    for stream, path in find_streams(run.journal):
        if stream.writer.startswith(prefix):
            with Reader(path, stream) as reader:
                for _, event in reader.read():
                    yield StreamKey(*stream), event


def has_ranks(run: RunDir) -> bool:
    """Whether anything ever attached to the run."""
    return any(stream.writer.startswith("rank-") for stream, _ in find_streams(run.journal))


def timing(run: RunDir) -> Timing:
    """How long steps and snapshots took, on rank 0."""
    steps = 0
    gaps: list[float] = []
    snapshots: list[float] = []
    longest = 0.0
    before: float | None = None
    for _, event in read_events(run, "rank-0"):
        if isinstance(event, Unknown):
            continue
        longest = max(longest, event.at - before if before else 0.0)
        if isinstance(event, ShardsWritten) and not event.end:
            snapshots.append(event.seconds)
        elif isinstance(event, StepCompleted):
            if before is not None and steps:
                gaps.append(event.at - before)
            steps = event.step
        before = event.at
    return Timing(
        steps, median(gaps) if gaps else 0.0, median(snapshots) if snapshots else 0.0, longest
    )


def outcome(run: RunDir) -> Outcome:
    """The run's surviving history and its end. Raises Unfinished, Corrupt, OSError."""
    state = recovery.fold_run(run)
    manifest = final_manifest(run, state)
    surviving = {(link.attempt, link.nonce): (link, last) for link, last in state.surviving()}
    history: list[dict[int, Facts]] = [{} for _ in range(manifest.world)]
    superseded: list[Superseded] = []
    for key, steps in _executions(run).items():
        rank = int(key.writer.removeprefix("rank-"))
        link, last = surviving.get((key.attempt, key.nonce), (None, 0))
        for step, facts in steps.items():
            if link is not None and link.base < step <= last and rank < manifest.world:
                history[rank][step] = facts
            else:
                superseded.append(Superseded(step, rank, key.attempt, facts))
    return Outcome(tuple(history), tuple(superseded), _final(run, manifest))


def _executions(run: RunDir) -> dict[StreamKey, dict[int, Facts]]:
    """Every execution of a step, by stream."""
    found: dict[StreamKey, dict[int, Facts]] = {}
    for key, event in read_events(run, "rank-"):
        steps = found.setdefault(key, {})
        if isinstance(event, StepCompleted):
            steps[event.step] = facts_of(event, opening=not steps)
        elif isinstance(event, ScalarsArrived) and event.step in steps:
            steps[event.step] = with_scalars(steps[event.step], event.scalars)
    return found


def final_manifest(run: RunDir, state: RunState) -> Manifest:
    """The newest snapshot, which must be the one of the end; all its bytes checked."""
    newest = state.candidates[0] if state.candidates else None
    if newest is None:
        raise Unfinished("It has no snapshot at all")
    if not newest.finished:
        raise Unfinished(
            f"Its newest snapshot is of step {newest.snapshot.step}, and not the one that "
            f"run.finish() or the end of the outermost run.loop() writes"
        )
    return snapshot.verify(run, newest.snapshot)


def _final(run: RunDir, manifest: Manifest) -> Final:
    tensors = tuple(
        {name: Tensor(at.digest, at.dtype, at.shape) for name, at in part.tensors.items()}
        for part in manifest.parts
    )
    return Final(
        manifest.step,
        tensors,
        tuple(_plain(run, manifest, rank) for rank in range(manifest.world)),
    )


def _plain(run: RunDir, manifest: Manifest, rank: int) -> Mapping[str, Any]:
    name = f"{manifest.name}/rank-{rank:05d}.msgpack"
    rest = plain.decode(shards.read_plain(run.snapshots, name, manifest.parts[rank].files[name]))
    state = rest["state"]
    return {part: plain.from_tree(state[part], _leaf) for part in ("rng", "position")} | {
        "objects": {name: _object(tree) for name, tree in state["objects"].items()}
    }


def _object(tree: Mapping[str, Any]) -> Any:
    return {"kind": tree["kind"], "state": plain.from_tree(tree["state"], _leaf)}


def _leaf(kind: str, payload: Any) -> Any:
    """What only the torch adapter could build stands for itself; hashable, as it may be a key."""
    return (kind, *payload) if isinstance(payload, list) else (kind, payload)


# --- one tensor of two runs ---------------------------------------------------------------------

_FORMATS = {
    "float64": "<d",
    "float32": "<f",
    "float16": "<e",
    "int64": "<q",
    "int32": "<i",
    "int16": "<h",
    "int8": "<b",
    "uint8": "<B",
    "bool": "<?",
}


def first_elements(calm: RunDir, killed: RunDir, rank: int, name: str) -> tuple[str, str] | None:
    """The first element in which a tensor of both final snapshots differs, as text for each run."""
    found = []
    for run in (calm, killed):
        manifest = final_manifest(run, recovery.fold_run(run))
        at = manifest.parts[rank].tensors.get(name)
        if at is None:
            return None
        found.append((at, _bytes(run.snapshots, manifest, name, at)))
    (at, one), (other_at, other) = found
    if (at.dtype, at.shape) != (other_at.dtype, other_at.shape) or len(one) != len(other):
        return None
    index = next((i for i, (a, b) in enumerate(_chunks(one, other)) if a != b), None)
    if index is None:
        return None
    start = index * CHUNK_BYTES
    offset = start + next(
        i
        for i, (a, b) in enumerate(
            zip(one[start : start + CHUNK_BYTES], other[start : start + CHUNK_BYTES], strict=True)
        )
        if a != b
    )
    size = struct.calcsize(_FORMATS.get(at.dtype, "<B"))
    place = offset // size
    return _element(one, place, at.dtype), _element(other, place, at.dtype)


def _bytes(snapshots: Path, manifest: Manifest, name: str, at: TensorAt) -> bytearray:
    with shards.Shard(snapshots, at.file, manifest.files()[at.file]) as shard:
        into = bytearray(shard.size_of(at))
        shard.read(name, at, into)
        return into


def _chunks(one: bytearray, other: bytearray) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(one), CHUNK_BYTES):
        yield bytes(one[start : start + CHUNK_BYTES]), bytes(other[start : start + CHUNK_BYTES])


def _element(data: bytearray, place: int, dtype: str) -> str:
    form = _FORMATS.get(dtype)
    if form is None:
        return f"{data[place]} (byte {place})"
    (value,) = struct.unpack_from(form, data, place * struct.calcsize(form))
    return f"{value!r} (element {place})"
