"""Votes, commits, retention: how a snapshot comes to exist, and how it goes.

Owns the commit protocol over the shard store and the sequence (specs/04-snapshots.md). Knows
nothing of torch or of the training loop; what to do about a failure is the caller's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from walrecover import entries as model
from walrecover import manifest as votes
from walrecover import plain, shards
from walrecover.entries import (
    CommitEntry,
    Entry,
    RetirementEntry,
    SnapshotRef,
    snapshot_name,
)
from walrecover.errors import Corrupt, Fenced, StorageFailed, WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.files import (
    create_if_absent,
    make_directory,
    read_regular,
    storage,
    sweep,
    sync_directory,
)
from walrecover.manifest import FileAt, Manifest, Part, TensorAt
from walrecover.reuse import Offer
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.shards import AT_ONCE, TensorData, Writing


class DurableStream(Protocol):
    """What a vote needs of the rank's journal."""

    def sync(self) -> tuple[int, bytes]: ...

    def envelopes(self, after: int, upto: int) -> list[bytes]: ...


class Capture(NamedTuple):
    """One rank's state at a boundary, as it goes to disk.

    `tensors`: every tensor by name; those in `shared` are replicated over the ranks, and only
    rank 0 writes them. `tree`: the rest of the state (`plain`'s wire form).
    `events_after`: the LSN up to which this rank's events lie behind an earlier commit.
    """

    run: str
    step: int
    end: bool
    attempt: int
    nonce: str
    rank: int
    world: int
    base: str
    position: str
    tensors: Mapping[str, TensorData]
    shared: frozenset[str]
    tree: Any
    writer: str
    events_after: int

    @property
    def name(self) -> str:
        return snapshot_name(self.step, self.attempt, self.nonce, self.end)


def vote(
    run: RunDir,
    capture: Capture,
    journal: DurableStream,
    writing: Writing = AT_ONCE,
    offers: Mapping[str, Offer] | None = None,
) -> Part:
    """Make this rank's shard and journal durable, then say so (rules 2, 6). Raises StorageFailed.

    `offers`: tensors of committed shards, referenced where they are what is captured.
    After an error the capture's name is spent: nothing under it is written again.
    """
    folder = run.snapshots / capture.name
    with storage(f"cannot make {folder}"):
        make_directory(folder)
    stem = f"{capture.name}/rank-{capture.rank:05d}"
    mine = {
        name: tensor
        for name, tensor in capture.tensors.items()
        if capture.rank == 0 or name not in capture.shared
    }
    written = f"{stem}.safetensors"
    file, addresses = shards.write_tensors(run.snapshots, written, mine, writing, offers)
    known = {offer.at.file: offer.file for offer in (offers or {}).values()}
    older = {at.file: known[at.file] for at in addresses.values() if at.file != written}
    replicated = {name: at.digest for name, at in addresses.items() if name in capture.shared}
    if capture.rank != 0:
        others = {n: t for n, t in capture.tensors.items() if n in capture.shared}
        replicated = writing.digests(others)
        # Rank 0 writes them; where they lie is known, and that they are there is checked at commit.
        # The key is a guess, which rank 0 puts right: of tied tensors it writes one.
        source = f"{capture.name}/rank-{0:05d}.safetensors"
        addresses |= {
            name: TensorAt(source, name, replicated[name], t.dtype, t.shape)
            for name, t in others.items()
        }
    lsn, chain = journal.sync()
    rest = {
        "format": 1,
        "state": capture.tree,
        "writer": capture.writer,
        "events": journal.envelopes(capture.events_after, lsn),
    }
    plain_file = shards.write_plain(run.snapshots, f"{stem}.msgpack", plain.encode(rest))
    part = Part(
        run=capture.run,
        step=capture.step,
        end=capture.end,
        attempt=capture.attempt,
        nonce=capture.nonce,
        rank=capture.rank,
        world=capture.world,
        base=capture.base,
        position=capture.position,
        files={f"{stem}.safetensors": file, f"{stem}.msgpack": plain_file, **older},
        tensors=addresses,
        replicated=replicated,
        writer=capture.writer,
        lsn=lsn,
        chain=chain.hex(),
    )
    with storage(f"cannot vote in {folder}"):
        sync_directory(folder)
        failpoint("snapshot.vote.before")
        if not create_if_absent(folder / f"rank-{capture.rank:05d}.part", votes.encode_part(part)):
            raise StorageFailed(f"{folder} holds a vote of rank {capture.rank} already")
        failpoint("snapshot.vote.after")
    return part


class Disagreed(WalrecoverError):
    """The votes for a step do not make a snapshot; it is abandoned."""


class DeadReference(Disagreed):
    """A vote lists an older file that no live snapshot lists any more (rule 9)."""


def read_votes(run: RunDir, name: str, world: int) -> list[Part] | None:
    """All votes for a capture, or None while some are missing. Raises Corrupt."""
    try:
        return [read_vote(run, name, rank) for rank in range(world)]
    except FileNotFoundError:
        return None


def read_vote(run: RunDir, name: str, rank: int) -> Part:
    """One rank's vote for a capture. Raises Corrupt, FileNotFoundError."""
    path = f"{name}/rank-{rank:05d}.part"
    return votes.decode_part(read_regular(run.snapshots, path, votes.MAX_MANIFEST_BYTES))


def voted(run: RunDir, attempt: int, nonce: str, rank: int) -> list[tuple[int, bool]]:
    """The captures of an attempt, as (step, end), for which this rank's vote is there; oldest
    first."""
    label = model.attempt_label(attempt, nonce)
    found = []
    for entry in os.scandir(run.snapshots):
        capture = votes.parse_snapshot_name(entry.name)
        if capture is None or capture[2] != label or not entry.is_dir(follow_symlinks=False):
            continue
        if os.path.exists(os.path.join(entry.path, f"rank-{rank:05d}.part")):
            found.append(capture[:2])
    return sorted(found)


def commit(
    run: RunDir, *, step: int, end: bool, attempt: int, nonce: str, world: int, finished: bool
) -> CommitEntry | None:
    """Commit a capture if every rank has voted for it; None while votes are missing.

    Raises Disagreed (the votes differ: abandoned), Fenced (a newer attempt exists: nothing was
    committed, and never will be by this one), StorageFailed.
    """
    name = snapshot_name(step, attempt, nonce, end)
    parts = read_votes(run, name, world)
    if parts is None:
        return None
    reason = votes.disagreement(parts) or _misplaced(parts)
    first = parts[0]
    said = (first.run, first.step, first.end, first.attempt, first.nonce, first.world)
    if said != (run.name, step, end, attempt, nonce, world):
        reason = f"the votes in {name} are for step {first.step} of attempt {first.attempt}"
    if reason:
        raise Disagreed(f"step {step}: {reason}")
    manifest = votes.seal_manifest(
        parts, [votes.digest_of(votes.encode_part(part)) for part in parts]
    )
    data = votes.encode_manifest(manifest)
    failpoint("snapshot.manifest.before")
    path = run.snapshots / name / "manifest.json"
    with storage(f"cannot write {path}"):
        if not create_if_absent(path, data):
            if read_regular(path.parent, path.name, votes.MAX_MANIFEST_BYTES) != data:
                raise StorageFailed(f"{path} exists already, with another content")
            sync_directory(path.parent)
    failpoint("snapshot.manifest.after")
    ref = SnapshotRef(
        step=step, attempt=attempt, nonce=nonce, manifest=votes.digest_of(data), end=end
    )
    entry = CommitEntry(id=os.urandom(8).hex(), at=time.time(), snapshot=ref, finished=finished)

    def decide(found: list[Entry]) -> Entry | None:
        require_newest(found, attempt, nonce)
        own = [c for c in model.commits(found) if c.snapshot.nonce == nonce]
        if own and (own[-1].snapshot.step, own[-1].snapshot.end) >= (step, end):
            raise Disagreed(f"step {step}: this attempt has committed step {own[-1].snapshot.step}")
        _refuse_dead(run, found, manifest)
        return entry

    Sequence(run.sequence).settle(decide)
    _remember(run, ref, manifest)
    failpoint("snapshot.committed")
    return entry


def _misplaced(parts: list[Part]) -> str | None:
    """A vote that says a tensor lies where rank 0 did not put it."""
    written = parts[0].tensors
    for part in parts[1:]:
        for name in part.replicated:
            if not _is_same(part.tensors.get(name), written.get(name)):
                return f"rank 0 did not write {name}, which rank {part.rank} leaves to it"
    return None


def _is_same(one: TensorAt | None, other: TensorAt | None) -> bool:
    if one is None or other is None:
        return False
    return (one.digest, one.dtype, one.shape) == (other.digest, other.dtype, other.shape)


def require_newest(found: list[Entry], attempt: int, nonce: str) -> None:
    """Raises Fenced unless the attempt is the newest of the sequence (P4)."""
    newest = model.newest_attempt(found)
    if newest is None or (newest.number, newest.nonce) != (attempt, nonce):
        who = f"attempt {newest.number} by {newest.holder}" if newest else "nobody"
        raise Fenced(
            f"attempt {attempt} was superseded: the run belongs to {who}; this process must end"
        )


def _refuse_dead(run: RunDir, found: list[Entry], manifest: Manifest) -> None:
    """A manifest may list an older file only while a live one does (rule 9).

    What no live manifest lists is dead for good, whoever looks and however late: so it may go.
    """
    older = manifest.older_files()
    if not older:
        return
    alive: dict[str, FileAt] = {}
    unread = ""
    for ref in live(found):
        try:
            alive |= files_of(run, ref)
        except (WalrecoverError, OSError) as error:
            unread = f", as far as can be read ({error})"
    for path, at in older.items():
        if alive.get(path) != at:
            raise DeadReference(
                f"step {manifest.step}: {path} belongs to a retired snapshot{unread}"
            )


def live(found: list[Entry]) -> list[SnapshotRef]:
    """Every committed snapshot that is not retired, on the chain or off it."""
    void = model.retired(found)
    return [c.snapshot for c in model.commits(found) if c.snapshot.manifest not in void]


_REMEMBERED = 64
_listings: dict[tuple[str, SnapshotRef], dict[str, FileAt]] = {}
"""What manifests list: content that its digest names, so that it cannot change."""


def files_of(run: RunDir, ref: SnapshotRef) -> dict[str, FileAt]:
    """The files that a committed manifest lists, its own and older ones. Raises as
    `load_manifest`, though not for what this process has read before."""
    known = _listings.get((str(run.snapshots), ref))
    return known if known is not None else _remember(run, ref, load_manifest(run, ref))


def _remember(run: RunDir, ref: SnapshotRef, manifest: Manifest) -> dict[str, FileAt]:
    while len(_listings) >= _REMEMBERED:
        _listings.pop(next(iter(_listings)), None)
    listing = _listings[str(run.snapshots), ref] = manifest.files()
    return listing


def _alive_files(run: RunDir, found: list[Entry]) -> set[str] | None:
    """Every file that a live manifest lists; None where one cannot be read."""
    try:
        return {path for ref in live(found) for path in files_of(run, ref)}
    except (WalrecoverError, OSError):
        return None


def load_manifest(run: RunDir, ref: SnapshotRef) -> Manifest:
    """The manifest that a commit names. Raises Corrupt, UnsupportedVersion, OSError."""
    try:
        data = read_regular(run.snapshots, f"{ref.name}/manifest.json", votes.MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise Corrupt(f"{ref.name}/manifest.json is missing") from None
    if votes.digest_of(data) != ref.manifest:
        raise Corrupt(f"{ref.name}/manifest.json is not the one that was committed")
    found = votes.decode_manifest(data)
    if found.name != ref.name:
        raise Corrupt(f"{ref.name}/manifest.json describes {found.name}")
    return found


def verify(run: RunDir, ref: SnapshotRef, *, mapped: bool = False) -> Manifest:
    """Read back all of a snapshot. Raises Corrupt naming the first difference, or OSError.
    `mapped`: faster, and what cannot be read ends the process (SIGBUS)."""
    found = load_manifest(run, ref)
    shards.verify_files(
        run.snapshots,
        found.files(),
        ((name, at) for part in found.parts for name, at in part.tensors.items()),
        mapped=mapped,
    )
    return found


def retire(
    run: RunDir, *, attempt: int, nonce: str, verified: frozenset[str], keep: int
) -> tuple[SnapshotRef, ...]:
    """Retire what retention allows, then delete what is retired (rules 9, 10).

    Files that a live manifest lists stay, whoever wrote them. Of what was `verified`, that counts
    which nobody has distrusted since.
    Returns what was retired now. Raises Fenced, StorageFailed.
    """

    def choose(found: list[Entry]) -> tuple[SnapshotRef, ...]:
        require_newest(found, attempt, nonce)
        trusted = frozenset(
            commit.snapshot.manifest
            for commit in model.candidates(found)
            if commit.snapshot.manifest in verified
            and not distrusted(run, attempt, nonce, commit.snapshot.name).exists()
        )
        return model.retirable(found, trusted, keep, lambda ref: listed(run, ref))

    return retire_chosen(run, choose)


def distrusted(run: RunDir, attempt: int, nonce: str, name: str) -> Path:
    """The word that a snapshot did not read back, for all processes of an attempt."""
    return run.meeting(attempt, nonce) / f"distrusted.{name}"


def listed(run: RunDir, ref: SnapshotRef) -> frozenset[str] | None:
    """The files that a snapshot's manifest lists, None where that cannot be read."""
    try:
        return frozenset(files_of(run, ref))
    except (WalrecoverError, OSError):
        return None


def retire_chosen(
    run: RunDir, choose: Callable[[list[Entry]], tuple[SnapshotRef, ...]]
) -> tuple[SnapshotRef, ...]:
    """Retire what `choose` picks from the entries, in the newest attempt's name, then delete.

    It may be asked again, where another entry came first. Returns what was retired now. Raises
    what `choose` does, StorageFailed.
    """
    chosen: tuple[SnapshotRef, ...] = ()

    def decide(found: list[Entry]) -> Entry | None:
        nonlocal chosen
        chosen, newest = choose(found), model.newest_attempt(found)
        if not chosen or newest is None:
            return None
        return RetirementEntry(
            id=os.urandom(8).hex(),
            at=time.time(),
            attempt=newest.number,
            nonce=newest.nonce,
            manifests=tuple(ref.manifest for ref in chosen),
        )

    found, created = Sequence(run.sequence).settle(decide)
    if created:
        failpoint("snapshot.retired")
    delete_void(run, found)
    return chosen if created else ()


def delete_void(run: RunDir, found: list[Entry]) -> None:
    """Delete the files of retired snapshots, and captures that can never commit any more.

    Those are the captures of older attempts, and the newest attempt's below its last commit.
    Whoever calls this may have slept since it read `found` (P4): what is of an attempt that is
    not in there is left alone, since it may have been committed meanwhile. A file that a live
    manifest lists stays; while one of those cannot be read, all stay.
    """
    alive = {ref.name for ref in live(found)}
    labels = {entry.label for entry in model.attempts(found)}
    if first := model.origin(found):
        labels.add(model.attempt_label(first.snapshot.attempt, first.snapshot.nonce))
        labels |= {model.attempt_label(one.attempt, one.nonce) for one in first.history}
    newest = model.newest_attempt(found)
    if newest is None:
        return
    own = [c.snapshot for c in model.commits(found) if c.snapshot.nonce == newest.nonce]
    floor = (own[-1].step, own[-1].end) if own else (0, False)
    needed = _alive_files(run, found)
    with storage(f"cannot delete below {run.snapshots}"):
        for entry in sorted(os.scandir(run.snapshots), key=lambda e: e.name):
            if needed is None:
                break
            if entry.name in alive or not entry.is_dir(follow_symlinks=False):
                continue
            capture = votes.parse_snapshot_name(entry.name)
            if capture is None or capture[2] not in labels:
                continue
            if capture[2] == newest.label and capture[:2] > floor:
                continue  # its votes may still meet
            _delete(entry.path, {name for name in needed if name.startswith(f"{entry.name}/")})
        _delete_traces(run, labels - {newest.label})


def _delete(folder: str, needed: set[str]) -> None:
    """Delete a capture, except for the files that live snapshots reference."""
    import shutil  # reading a run never needs it

    kept = {name.rpartition("/")[2] for name in needed}
    try:
        if kept.issuperset(os.listdir(folder)):
            return
    except FileNotFoundError:
        return  # somebody else deletes, too
    failpoint("snapshot.deleting")
    # The manifest first: what is half gone must not look whole.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, "manifest.json"))
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name in set(os.listdir(folder)) - kept:  # it holds some, so that nobody removes it
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, name))


def _delete_traces(run: RunDir, over: set[str]) -> None:
    """What else attempts that are over have left."""
    import shutil

    for folder in os.scandir(run.attempts):
        if folder.name in over and folder.is_dir(follow_symlinks=False):
            shutil.rmtree(folder.path, ignore_errors=True)
    sweep(run.sequence)
    for label in over:
        sweep(run.journal / label)
