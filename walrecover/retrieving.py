"""A run directory that is gone, restored from its copy in a vault.

Owns what is fetched and how it becomes a run. Everything in the vault is hostile until its digests
are checked; what is not whole is named and left to recovery, which passes it over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from walrecover import entries as model
from walrecover import imported, mirror, snapshot, verifying
from walrecover.entries import Entry, SnapshotRef
from walrecover.errors import BadInput, Corrupt, WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.files import make_directory, storage, sync_directory, sync_file, write_durably
from walrecover.imported import Imported
from walrecover.importing import journal_placed, require_free_name
from walrecover.journal import START, StreamId, build_stream, check_envelopes, stream_at
from walrecover.manifest import MAX_MANIFEST_BYTES
from walrecover.mirror import Segment
from walrecover.rundir import RunDir, check_name
from walrecover.sequence import Sequence
from walrecover.staging import Fresh, aside, place, sync_tree
from walrecover.vaults import Vault
from walrecover.verifying import Checked


class Retrieved(NamedTuple):
    """A run that was restored. `damaged`: snapshots that are not whole in the vault."""

    run: RunDir
    entries: int
    damaged: tuple[Checked, ...]


def retrieve(
    vault: Vault,
    source: str,
    root: Path,
    *,
    name: str | None = None,
    journal: Path | None = None,
    told: Callable[[str, int], object] = lambda name, size: None,
) -> Retrieved:
    """Make the copy of the run `source` a run below `root`, under its own name or another. `told`
    hears of each object that was fetched.

    Raises BadInput (no such copy, the name is taken), Corrupt (its entries, or no snapshot is
    whole), UnsupportedVersion, StorageFailed; then there is no run.
    """
    run = RunDir(root, check_name(name or check_name(source)), journal)
    require_free_name(run)
    listed = vault.sizes(f"{source}/")
    there = {key.removeprefix(f"{source}/"): size for key, size in listed.items()}
    count = mirror.entries_there(there)
    if count == 0:
        raise BadInput(f"{vault.where} holds no copy of a run {source!r}")
    with aside(run) as staged, storage(f"cannot make {run.path}"):
        fetching = _Fetching(vault, source, staged, there, told)
        fetching.entries(count)
        entries = Sequence(staged.sequence).read()
        for ref in snapshot.live(entries):
            fetching.snapshot(ref)
        fetching.streams(entries)
        failpoint("import.unpacked")
        damaged = _verify(staged, entries)
        failpoint("import.verified")
        imported.write(staged, Imported(f"{vault.where}/{source}", count, time.time()))
        sync_tree(staged.path)
        with journal_placed(staged, run):
            place(staged, run, "run")
            failpoint("import.renamed")
            sync_directory(run.path.parent)
    return Retrieved(run, count, damaged)


def _verify(staged: RunDir, entries: list[Entry]) -> tuple[Checked, ...]:
    """What of the snapshots is not whole. The streams were checked as they were built."""
    damaged = tuple(one for one in verifying.verify(staged, entries) if one.problem)
    bad = {one.name for one in damaged}
    live = model.candidates(entries)
    if live and all(commit.snapshot.name in bad for commit in live):
        raise Corrupt(f"no snapshot of the copy is whole: {damaged[0].problem}")
    return damaged


class _Fetching:
    """From one copy of a run into its staged folders, each file durable."""

    def __init__(
        self,
        vault: Vault,
        source: str,
        staged: RunDir,
        there: dict[str, int],
        told: Callable[[str, int], object],
    ) -> None:
        self._vault, self._top, self._staged = vault, f"{source}/", staged
        self._there, self._told, self._fresh = there, told, Fresh(staged.path)

    def entries(self, count: int) -> None:
        for number in range(1, count + 1):
            name = mirror.entry_name(number)
            data = self._vault.read(self._top + name, model.MAX_ENTRY_BYTES)
            write_durably(self._staged.path / name, data)
            self._told(name, len(data))

    def snapshot(self, ref: SnapshotRef) -> None:
        """All that its manifest lists, as far as it is there: what lacks shows when it is read."""
        name = f"snapshots/{ref.name}/manifest.json"
        if name not in self._there or self._there[name] > MAX_MANIFEST_BYTES:
            return
        self._fetch(name)
        try:
            listed = snapshot.files_of(self._staged, ref)
        except WalrecoverError:
            return
        for path, at in listed.items():
            if mirror.is_there(self._there, f"snapshots/{path}", at.bytes):
                self._fetch(f"snapshots/{path}")

    def _fetch(self, name: str) -> None:
        target = self._staged.path / name
        if target.exists():
            return
        make_directory(target.parent)
        with open(target, "xb") as file:
            for piece in self._vault.pieces(self._top + name):
                file.write(piece)
                self._fresh()
        sync_file(target)
        self._told(name, self._there[name])

    def streams(self, entries: list[Entry]) -> None:
        mine = {entry.label for entry in model.attempts(entries)}
        for stream, segments in mirror.segments(self._there).items():
            if stream.partition("/")[0] not in mine:
                continue
            target = self._staged.journal / stream
            make_directory(target)
            size = sum(self._there[one.name] for one in segments)
            groups = self._groups(stream_at(target), segments)
            build_stream(target, groups, size=size)
            sync_file(target / "data.mdb")

    def _groups(self, stream: StreamId, segments: list[Segment]) -> Iterator[list[bytes]]:
        """The good events without a gap from the first on."""
        lsn, chain = START
        for one in segments:
            if one.last <= lsn:
                continue
            if one.first > lsn + 1:
                return
            try:
                data = self._vault.read(self._top + one.name, mirror.MAX_SEGMENT_BYTES)
                found = mirror.decode_segment(data, one)[lsn + 1 - one.first :]
            except Corrupt:
                return
            self._told(one.name, len(data))
            checked = check_envelopes(found, first=lsn + 1, attempt=stream.attempt, chain=chain)
            good = len(checked.payloads)
            if good:
                yield found[:good]
                lsn, chain = lsn + good, checked.chains[-1]
            if checked.problem:
                return
