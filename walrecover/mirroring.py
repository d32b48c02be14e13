"""Keeping up a run's copy in a vault: what is missing there is sent, entries last.

Owns the order of requests (specs/20-archive.md). The run itself is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from blake3 import blake3

from walrecover import entries as model
from walrecover import mirror, snapshot, verifying
from walrecover.entries import Entry, SnapshotRef
from walrecover.errors import BadInput, Corrupt, StorageFailed
from walrecover.files import open_regular, read_regular, storage, sync_directory
from walrecover.gathering import link_snapshots
from walrecover.journal import Reader, examine_all, find_streams
from walrecover.rundir import RunDir
from walrecover.staging import Fresh, aside
from walrecover.vaults import Vault
from walrecover.verifying import Checked


class Mirrored(NamedTuple):
    """A run whose copy is up to its entry `entries`. `sent`, `deleted`: objects of this turn, and
    `bytes` of what was sent. `damaged`: snapshots that do not verify here, and were not sent."""

    entries: int
    finished: bool
    sent: int
    bytes: int
    deleted: int
    damaged: tuple[Checked, ...]


def keep_up(
    run: RunDir, vault: Vault, told: Callable[[str, int], object] = lambda name, size: None
) -> Mirrored:
    """Bring the run's copy in the vault up to the newest entry. `told` hears of each object sent.

    Raises BadInput (nothing there, or the vault holds another run of this name), Corrupt (the
    sequence), StorageFailed; then what was sent stays, and the next turn goes on behind it.
    """
    with aside(run) as staged:
        with storage(f"cannot put {run.path} together"):
            entries = link_snapshots(run, staged)
            sync_directory(run.sequence)  # nobody acts on an entry before it is durable (rule 1)
        return _Turn(run, staged, entries, vault, told).take()


class _Turn:
    """One turn over a run whose snapshots are held in `staged`."""

    def __init__(
        self,
        run: RunDir,
        staged: RunDir,
        entries: list[Entry],
        vault: Vault,
        told: Callable[[str, int], object],
    ) -> None:
        self._run, self._staged, self._entries, self._vault = run, staged, entries, vault
        self._told, self._fresh = told, Fresh(staged.path)
        self._top = f"{run.name}/"
        listed = vault.sizes(self._top)
        self._there = {name.removeprefix(self._top): size for name, size in listed.items()}
        self._known = mirror.entries_there(self._there)
        self._sent = self._bytes = 0

    def take(self) -> Mirrored:
        self._require_ours()
        damaged, alive = self._send_snapshots()
        self._send_events()
        for number in range(self._known + 1, len(self._entries) + 1):
            self._create(mirror.entry_name(number), self._entry_bytes(number))
        over = mirror.to_delete(self._entries, self._there, alive)
        self._vault.delete(self._top + name for name in over)
        return Mirrored(
            len(self._entries),
            model.finished(self._entries),
            self._sent,
            self._bytes,
            len(over),
            tuple(damaged),
        )

    def _require_ours(self) -> None:
        """The vault's entries are the beginning of the run's own."""
        if self._known == 0:
            return
        theirs = self._vault.read(self._top + mirror.entry_name(self._known), model.MAX_ENTRY_BYTES)
        if self._known > len(self._entries) or theirs != self._entry_bytes(self._known):
            raise BadInput(
                f"{self._vault.where} holds another run {self._run.name}, or this one as it went "
                f"on elsewhere: choose another vault, or remove what is there"
            )

    def _entry_bytes(self, number: int) -> bytes:
        return read_regular(self._run.path, mirror.entry_name(number), model.MAX_ENTRY_BYTES)

    def _send_snapshots(self) -> tuple[list[Checked], set[str]]:
        """The damaged ones, and the names of all that lives."""
        before = {c.snapshot.manifest for c in model.commits(self._entries[: self._known])}
        damaged, alive = [], set[str]()
        for ref in snapshot.live(self._entries):
            try:
                listed = snapshot.files_of(self._staged, ref)
            except (Corrupt, OSError) as error:
                damaged.append(Checked("snapshot", ref.name, 0, str(error)))
                alive |= {name for name in self._there if name.startswith(f"snapshots/{ref.name}/")}
                continue
            files = {f"snapshots/{path}": at.bytes for path, at in listed.items()}
            alive |= {*files, _manifest(ref)}
            counts = ref.manifest in before and _manifest(ref) in self._there
            if counts and all(mirror.is_there(self._there, *one) for one in files.items()):
                continue
            (checked,) = verifying.snapshots(self._staged, [ref])
            if checked.problem:
                damaged.append(checked)
                continue
            for name in [*files, _manifest(ref)]:
                self._send(name)
        return damaged, alive

    def _send(self, name: str) -> None:
        """Send a file of a snapshot, unless these bytes are there, and read it back."""
        self._fresh()
        digest, size = self._digest(name)
        there = mirror.is_there(self._there, name, size)
        if there and self._vault.digest(self._top + name) == digest:
            return
        self._vault.put(self._top + name, self._staged.path / name)
        if self._vault.digest(self._top + name) != digest:
            raise StorageFailed(
                f"{self._vault.where}: {name} does not read back as it was sent: look after that "
                f"storage"
            )
        self._there[name] = size
        self._count(name, size)

    def _digest(self, name: str) -> tuple[str, int]:
        hasher, size = blake3(), 0
        with os.fdopen(open_regular(self._staged.path, name), "rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
                size += len(piece)
        return hasher.hexdigest(), size

    def _send_events(self) -> None:
        mine = {entry.label for entry in model.attempts(self._entries)}
        streams = [
            (stream, path)
            for stream, path in find_streams(self._run.journal)
            if str(stream).partition("/")[0] in mine
        ]
        there = mirror.segments(self._there)
        for stream, report in examine_all(streams).items():
            done = mirror.reached(there.get(str(stream), []))
            if not report.readable or report.last <= done:
                continue
            with Reader(dict(streams)[stream], stream) as reader:
                while done < report.last:
                    self._fresh()
                    last = min(done + mirror.SEGMENT_EVENTS, report.last)
                    data = mirror.encode_segment(reader.envelopes(done, last))
                    self._create(mirror.segment_name(str(stream), done + 1, last), data)
                    done = last

    def _create(self, name: str, data: bytes) -> None:
        """An object that is written once: by us, or the same by somebody else."""
        if self._vault.create(self._top + name, data):
            self._count(name, len(data))
        elif self._vault.read(self._top + name, len(data)) != data:
            raise BadInput(
                f"{self._vault.where}: {name} of run {self._run.name} holds something else: "
                f"somebody else keeps up another run of this name there"
            )

    def _count(self, name: str, size: int) -> None:
        self._sent, self._bytes = self._sent + 1, self._bytes + size
        self._told(name, size)


def _manifest(ref: SnapshotRef) -> str:
    return f"snapshots/{ref.name}/manifest.json"
