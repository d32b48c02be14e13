"""A new run from a kept snapshot of another: built aside, and there all at once or not at all.

Owns the order of a fork's writes (specs/15-time-travel.md). Nothing of the parent is changed. The
snapshot's files are hard links where the file system has them: names are written once and bytes
never again, so that the two runs share no more than what neither can change.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from walrecover import entries as model
from walrecover import lineage, past, snapshot
from walrecover import skips as skipping
from walrecover.entries import CommitEntry, Entry, OriginEntry, Skip
from walrecover.errors import BadInput, Corrupt
from walrecover.failpoints import failpoint
from walrecover.files import make_directory, storage, sync_directory, write_durably
from walrecover.rundir import RunDir, check_name
from walrecover.sequence import Sequence
from walrecover.skips import Standing
from walrecover.staging import aside, link_or_copy, place, require_absent


class Forked(NamedTuple):
    """A fork that exists. `gaps`: what of the parent's journal could not be read."""

    run: RunDir
    origin: OriginEntry
    gaps: tuple[str, ...] = ()


def fork(
    parent: RunDir,
    at: int,
    *,
    name: str | None = None,
    skips: tuple[tuple[int, int], ...] = (),
    source: int | None = None,
    epoch: int | None = None,
) -> Forked:
    """Make a run that goes on from the parent's snapshot of step `at`, leaving out `skips`.

    Raises BadInput (no such snapshot, the name is taken, a skip that cannot be), Corrupt (the
    snapshot does not verify), StorageFailed; then nothing was made.
    """
    found = Sequence(parent.sequence).read()
    commit = kept_at(parent, found, at)
    run = RunDir(parent.root, check_name(name or f"{parent.name}-at-{at}"), parent.journal_root)
    require_absent(run, "fork")
    history = lineage.history(parent.name, found, commit.snapshot)
    gaps: list[str] = []
    placed: tuple[Skip, ...] = ()
    if skips:
        standing = Standing()
        for told in past.read(parent, history, gaps):
            standing.take(told.event)
        placed = tuple(
            skipping.placed(one, standing, at, source=source, epoch=epoch) for one in skips
        )
    origin = OriginEntry(
        id=os.urandom(8).hex(),
        at=time.time(),
        parent=parent.name,
        snapshot=commit.snapshot,
        history=history,
        skips=(*model.skips(found), *placed),
        finished=commit.finished,
    )
    _build(parent, run, origin)
    return Forked(run, origin, tuple(gaps))


def kept_at(run: RunDir, entries: list[Entry], at: int) -> CommitEntry:
    """The kept snapshot of a step. Raises BadInput, naming the nearest two."""
    live = model.candidates(entries)
    exact = [commit for commit in live if commit.snapshot.step == at]
    if exact:
        return exact[-1]  # of a step's two the one whose loops had not ended
    steps = sorted({commit.snapshot.step for commit in live})
    near = [
        *[step for step in steps if step < at][-1:],
        *[step for step in steps if step > at][:1],
    ]
    if not near:
        raise BadInput(f"run {run.name} has no snapshot at all, so none of step {at}")
    names = " and ".join(f"step {step}" for step in near)
    raise BadInput(f"run {run.name} has no snapshot of step {at}: the nearest are of {names}")


def _build(parent: RunDir, run: RunDir, origin: OriginEntry) -> None:
    """All of it under a temporary name, durable; then its own."""
    with aside(run) as staged, storage(f"cannot make {run.path}"):
        _take_over(parent, staged, origin)
        failpoint("fork.linked")
        snapshot.verify(staged, origin.snapshot)
        write_durably(staged.sequence / "00000001.json", model.encode(origin))
        sync_directory(staged.sequence)
        failpoint("fork.entered")
        place(staged, run, "fork")
        failpoint("fork.renamed")
        sync_directory(run.path.parent)


def _take_over(parent: RunDir, staged: RunDir, origin: OriginEntry) -> None:
    """The snapshot's files, those that it references included, by link or as copies, with names
    that are durable."""
    own = origin.snapshot.name
    make_directory(staged.snapshots / own)
    folders = {own}
    try:
        source = parent.snapshots / own
        names = [f"{own}/{entry.name}" for entry in os.scandir(source) if entry.name[0] != "."]
        older = snapshot.load_manifest(parent, origin.snapshot).older_files()
        for name in sorted([*names, *older]):
            folder = name.partition("/")[0]
            if folder not in folders:
                make_directory(staged.snapshots / folder)
                folders.add(folder)
            link_or_copy(parent.snapshots / name, staged.snapshots / name)
    except FileNotFoundError as error:
        raise Corrupt(
            f"{error.filename} is gone: the snapshot of step {origin.snapshot.step} was retired "
            f"meanwhile, or is damaged"
        ) from None
    for folder in sorted(folders):
        sync_directory(staged.snapshots / folder)
