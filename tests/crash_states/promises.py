"""What a recovery must find in every crash state of `workload`.

Owns: the check. It recovers as the next attempt would, and holds what it finds to all that had
been acknowledged (P1, P2, P3), to a second recovery over the first one's writes (P7), and, in
one state of `DAMAGED_ONE_IN`, to noticing a bit that a third party flips afterwards (P8). Streams
are read in this process rather than in a child of it: the harness lets it die of them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from tests.support import protocol
from walrecover import checkpoints, codec, manifest, recovery, shards, snapshot
from walrecover import entries as model
from walrecover.entries import AttemptEntry, Entry, SnapshotRef
from walrecover.errors import Corrupt, UnsupportedVersion
from walrecover.events import RecoveryPlanned
from walrecover.files import read_regular
from walrecover.journal import Cursor, Reader, StreamId, examine_all, find_streams, inspector
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.state import RunState

from .rebuild import Tree
from .workload import SIZES, WORLD, content, run_below

ONE_IN = 5
Base = SnapshotRef | None
UNKNOWN = SnapshotRef(0, 0, "", "")
_examine: Any = importlib.import_module("walrecover.journal.examine")


class Vote(NamedTuple):
    label: str
    step: int
    end: bool
    digest: str


@dataclass
class Promised:
    """The newest of what was acknowledged: `events` by stream, `votes` by rank."""

    attempts: list[tuple[int, str]] = field(default_factory=list)
    events: dict[tuple[str, str], Cursor] = field(default_factory=dict)
    votes: dict[int, Vote] = field(default_factory=dict)
    commits: list[tuple[int, str]] = field(default_factory=list)
    void: set[str] = field(default_factory=set)

    def attempt(self, number: str, nonce: str) -> None:
        self.attempts.append((int(number), nonce))

    def event(self, label: str, writer: str, lsn: str, chain: str) -> None:
        self.events[label, writer] = Cursor(int(lsn), bytes.fromhex(chain))

    def vote(self, label: str, rank: str, step: str, end: str, digest: str) -> None:
        self.votes[int(rank)] = Vote(label, int(step), bool(int(end)), digest)

    def commit(self, step: str, digest: str) -> None:
        self.commits.append((int(step), digest))

    def retired(self, digest: str) -> None:
        self.void.add(digest)


@functools.lru_cache(maxsize=256)
def promised(acks: tuple[str, ...]) -> Promised:
    found = Promised()
    for ack in acks:
        kind, *words = ack.split()
        getattr(found, kind)(*words)
    return found


class Broken(Exception):
    """A promise that the state does not keep."""


class Recovered(NamedTuple):
    entry: AttemptEntry
    event: RecoveryPlanned
    state: RunState

    @property
    def base(self) -> SnapshotRef | None:
        return self.entry.plan.base


def check(directory: Path, acks: tuple[str, ...], *, base: Base = UNKNOWN) -> str | None:
    """What is wrong with this state, or None. `base`: what recovery must find, where known."""
    told, run = promised(acks), run_below(directory)
    try:
        with _reading_here() as states:
            run.create()
            seed = _seed(run, acks)
            first = recover(run, states)
            with _folding(first.state, anew=seed % ONE_IN == 1):
                second = recover(run, states)
            entries = Sequence(run.sequence).read()
            _keeps_entries(told, entries, first)
            _is_whole(run, first)
            if base != UNKNOWN and first.base != base:
                raise Broken(f"recovers {first.base}, and an undisturbed recovery {base}")
            _is_the_same(first, second)
            _keeps_events(run, told, first.state)
            _keeps_votes(run, told, first.state.entries)
            if seed % ONE_IN == 0:
                _notices_damage(run, first, states, random.Random(seed))
    except Broken as broken:
        return str(broken)
    return None


def check_again(
    directory: Path, acks: tuple[str, ...], *, before: tuple[str, ...], base: Base
) -> str | None:
    """A crash state of a recovery, which began over a state with these acknowledgements."""
    return check(directory, (*before, *acks), base=base)


def base_of(tree: Tree, folder: Path) -> Base:
    """What an undisturbed recovery restores."""
    folder.mkdir()
    tree.write(folder)
    run = run_below(folder)
    with _reading_here() as states:
        run.create()
        return recover(run, states).base


def recover(run: RunDir, states: list[RunState]) -> Recovered:
    begun = recovery.begin_attempt(run, protocol.holder())
    return Recovered(begun.entry, begun.event, states.pop())


# --- what was acknowledged is there -------------------------------------------------------------


def _keeps_entries(told: Promised, entries: list[Entry], first: Recovered) -> None:
    found = [(entry.number, entry.nonce) for entry in model.attempts(entries)]
    if lost := [attempt for attempt in told.attempts if attempt not in found]:
        raise Broken(f"attempt {lost[0]} is gone from {found}")
    live = [commit.snapshot for commit in model.candidates(entries)]
    void = model.retired(entries)
    if told.void - void:
        raise Broken(f"the retirement of {told.void - void} is gone")
    for step, digest in told.commits:
        newer = [ref for ref in live if ref.step > step]
        if digest in void and len(newer) < 2:
            raise Broken(f"step {step} is retired, and {newer} is all that is newer")
        if digest not in void and digest not in {ref.manifest for ref in live}:
            raise Broken(f"the commit of step {step} is gone: {[ref.step for ref in live]}")
    newest = max((step for step, _ in told.commits), default=0)
    reached = first.base.step if first.base else 0
    if reached < newest:
        raise Broken(f"recovers step {reached}, and step {newest} was committed")


def _is_whole(run: RunDir, first: Recovered) -> None:
    """The base is what its own attempt's training had made, and nothing had to be passed over."""
    if first.event.plan.rejected or first.event.losses:
        raise Broken(f"rejected {first.event.plan.rejected}, lost {first.event.losses}")
    if first.base is None:
        return
    made = snapshot.load_manifest(run, first.base)
    label = model.attempt_label(first.base.attempt, first.base.nonce)
    for part in made.parts:
        for name in SIZES:
            wanted = _digest_of(name, label, part.rank, first.base.step)
            if part.tensors[name].digest != wanted:
                raise Broken(f"{name} of rank {part.rank} in {made.name} is another one's")
    if len(made.parts) != WORLD:
        raise Broken(f"{made.name} has {len(made.parts)} parts")


@functools.lru_cache(maxsize=1024)
def _digest_of(name: str, label: str, rank: int, step: int) -> str:
    return manifest.digest_of(content(name, label, rank, step))


def _is_the_same(first: Recovered, second: Recovered) -> None:
    """Recovering again finds the same, with the fold's caches and without (P7)."""
    if first.entry.plan != second.entry.plan:
        raise Broken(f"recovers {first.entry.plan}, and again {second.entry.plan}")
    if first.state.records != second.state.records:
        raise Broken("a fold from its cache differs from a full one")
    if first.event.last_step != second.event.last_step:
        raise Broken("the last step changed")


def _keeps_events(run: RunDir, told: Promised, state: RunState) -> None:
    records = {(model.attempt_label(k.attempt, k.nonce), k.writer): k for k in state.records}
    for (label, writer), head in told.events.items():
        key = records.get((label, writer))
        if key is None:
            raise Broken(f"the stream {label}/{writer} is gone, with {head.lsn} events")
        if state.records[key].lsn < head.lsn:
            raise Broken(f"{label}/{writer} ends at {state.records[key].lsn} of {head.lsn}")
        with Reader(run.stream(*key)) as reader:
            if reader.cursor_at(head.lsn) != head:
                raise Broken(f"event {head.lsn} of {label}/{writer} is another one")


def _keeps_votes(run: RunDir, told: Promised, entries: tuple[Entry, ...]) -> None:
    """The newest votes, as long as their attempt is the newest and no later capture committed."""
    newest = model.newest_attempt(entries)
    if newest is None:
        return
    own = [c.snapshot for c in model.commits(entries) if c.snapshot.nonce == newest.nonce]
    floor = (own[-1].step, own[-1].end) if own else (0, False)
    for rank, vote in told.votes.items():
        if vote.label == newest.label and (vote.step, vote.end) >= floor:
            name = model.snapshot_name(vote.step, newest.number, newest.nonce, vote.end)
            _keeps_vote(run, f"{name}/rank-{rank:05d}.part", vote.digest)


def _keeps_vote(run: RunDir, path: str, digest: str) -> None:
    try:
        data = read_regular(run.snapshots, path, 1 << 20)
        if manifest.digest_of(data) != digest:
            raise Broken(f"the vote {path} is not the one that was cast")
        part = manifest.decode_part(data)
        mine = [(name, at) for name, at in part.tensors.items() if at.file in part.files]
        shards.verify_files(run.snapshots, part.files, mine)
    except (Corrupt, OSError) as error:
        raise Broken(f"the vote {path} was cast: {error}") from None


# --- a third party's damage ---------------------------------------------------------------------


def _seed(run: RunDir, acks: tuple[str, ...]) -> int:
    """Another number for every state, or nearly; the same for a state seen again."""
    names = sorted(name for _, _, files in os.walk(run.path) for name in files)
    seed = crc32(f"{names} {acks}".encode())
    for _, path in find_streams(run.journal):
        seed = crc32((path / "data.mdb").read_bytes(), seed)
    return seed


def _notices_damage(
    run: RunDir, first: Recovered, states: list[RunState], rng: random.Random
) -> None:
    streams = find_streams(run.journal)
    if streams:
        _notices_a_flipped_event(*rng.choice(streams), rng)
    if first.base is not None:
        _notices_a_flipped_shard(run, first.base, states, rng)


def _notices_a_flipped_event(stream: StreamId, path: Path, rng: random.Random) -> None:
    """What is read after it is what was read before, or a beginning of it and a named loss."""
    before, _ = _events(stream, path)
    data = path / "data.mdb"
    envelopes = [found.start() for found in re.finditer(codec.MAGIC, data.read_bytes())]
    _flip(data, rng.choice(envelopes) + rng.randrange(60), rng)
    after, problem = _events(stream, path)
    if after != before[: len(after)] or (len(after) < len(before) and not problem):
        raise Broken(f"a flipped bit in {stream} is read as an event")


def _events(stream: StreamId, path: Path) -> tuple[list[Any], str | None]:
    report = examine_all([(stream, path)])[stream]
    if not report.readable:
        return [], report.problem
    with Reader(path) as reader:
        return list(reader.read(upto=report.last)), report.problem


def _notices_a_flipped_shard(
    run: RunDir, base: SnapshotRef, states: list[RunState], rng: random.Random
) -> None:
    """Recovery passes the damaged snapshot over, by name, for an older one where there is one."""
    paths = [f"{base.name}/manifest.json", *snapshot.load_manifest(run, base).files()]
    name = rng.choice(sorted(paths))
    path = run.snapshots / name
    _flip(path, rng.choice(_read_of(path, _keys_of(run, base, name))), rng)
    older = [c for c in model.candidates(Sequence(run.sequence).read()) if c.snapshot != base]
    try:
        found = recover(run, states)
    except (Corrupt, UnsupportedVersion) as error:
        if older:
            raise Broken(f"refused, with {older[0].snapshot.name} there: {error}") from None
        return
    rejected = [rejected.manifest for rejected in found.entry.plan.rejected]
    if found.base == base or base.manifest not in rejected or not older:
        raise Broken(f"a flipped bit in {path.name} of {base.name} is recovered as {found.base}")


def _keys_of(run: RunDir, base: SnapshotRef, name: str) -> set[str]:
    parts = snapshot.load_manifest(run, base).parts
    return {at.key for part in parts for at in part.tensors.values() if at.file == name}


def _read_of(path: Path, keys: set[str]) -> range | list[int]:
    """The bytes of a file that are read: of an older shard those that are referenced."""
    if path.suffix != ".safetensors":
        return range(path.stat().st_size)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    spans = json.loads(data[8:start])
    return [
        *range(start),
        *(start + place for key in keys for place in range(*spans[key]["data_offsets"])),
    ]


def _flip(path: Path, at: int, rng: random.Random) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        held = file.read(1)[0]
        file.seek(at)
        file.write(bytes([held ^ 1 << rng.randrange(8)]))


# --- the library, read by this process alone ----------------------------------------------------


class _Here:
    """In the place of the child that examines streams."""

    silent = False
    last_words = ""

    def __init__(self, jobs: list[inspector.Job]) -> None:
        self._jobs = jobs

    start = classmethod(lambda cls, jobs: cls(jobs))

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def said(self, patience: float) -> Iterator[inspector.Said]:
        found: list[inspector.Said] = []
        inspector.answer(self._jobs, found)  # type: ignore[arg-type]
        return iter(found)

    def status(self) -> int:
        return 0


@contextlib.contextmanager
def _reading_here() -> Iterator[list[RunState]]:
    """Gives the states that recoveries have folded, the newest last."""
    states: list[RunState] = []

    def planned(state: RunState, *rest: Any) -> RecoveryPlanned:
        states.append(state)
        return _planned_event(state, *rest)

    with (
        _swapped(_examine, Inspector=_Here),
        _swapped(inspector, _say=lambda found, said: found.append(said)),
        _swapped(recovery, planned_event=planned),
    ):
        yield states


_planned_event: Callable[..., RecoveryPlanned] = recovery.planned_event


def _folding(state: RunState, anew: bool) -> contextlib.AbstractContextManager[None]:
    """Folding without caches, or not at all (the plan does not depend on it)."""
    if anew:
        return _swapped(checkpoints, load=lambda *_: None)
    return _swapped(recovery, fold_run=lambda run, entries: state)


@contextlib.contextmanager
def _swapped(module: Any, **names: Any) -> Iterator[None]:
    held = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(held)
