"""A run as one file: staged as it was at one moment, verified, packed, and given its name.

Owns the order of an export's writes (specs/20-archive.md). The run itself is only read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from walrecover import archive
from walrecover import entries as model
from walrecover.archive import Statement
from walrecover.entries import Entry
from walrecover.errors import BadInput, Corrupt
from walrecover.failpoints import failpoint
from walrecover.files import LEFTOVER_SECONDS, open_regular, storage, sync_directory
from walrecover.gathering import gather
from walrecover.rundir import RunDir
from walrecover.staging import Fresh, aside
from walrecover.tarball import Packer, require_zstandard

Progress = Callable[[int, int], object]
"""Is told how many bytes were done since it was told last, and how many there are in all."""


class Exported(NamedTuple):
    """An archive that exists. `bytes`: of the file itself."""

    path: Path
    statement: Statement
    bytes: int


def export(
    run: RunDir,
    file: Path,
    *,
    version: str = "",
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write a run into one file. It may go on meanwhile. `version`: of the exporting walrecover.

    Raises BadInput (the file is there, or nothing to export), Corrupt (no snapshot verifies),
    StorageFailed; then there is no file.
    """
    require_zstandard()
    _require_new(file)
    with aside(run) as staged:
        fresh = Fresh(staged.path)
        entries, left_out = gather(run, staged, fresh)
        failpoint("export.staged")
        live = model.candidates(entries)
        bad = {one.name for one in left_out}
        whole = [c.snapshot for c in live if c.snapshot.name not in bad]
        if live and not whole:
            raise Corrupt(f"no snapshot of run {run.name} verifies: {left_out[0].problem}")
        places = list(_places(staged.path))
        notes = archive.readme(run.name, whole[0].step if whole else None, left_out).encode()
        statement = Statement(
            format=archive.FORMAT,
            run=run.name,
            version=version,
            at=time.time(),
            entries=len(entries),
            files=len(places) + 1,
            bytes=sum(size for _, size in places) + len(notes),
            left_out=left_out,
            parents=_parents(run, entries),
        )
        return _write(staged, file, statement, notes, places, progress, fresh)


def _require_new(file: Path) -> None:
    if os.path.lexists(file):
        raise BadInput(f"{file} is there already: give the archive another name")
    if not file.parent.is_dir():
        raise BadInput(f"{file.parent} is no folder to write an archive to")


def _parents(run: RunDir, entries: list[Entry]) -> tuple[str, ...]:
    first = model.origin(entries)
    named = dict.fromkeys(one.run for one in first.history) if first else {}
    return tuple(name for name in named if name != run.name)


def _places(staged: Path) -> Iterator[tuple[str, int]]:
    """What goes into the archive, in its order, with sizes: the sequence last, behind what it
    decides about."""
    for name in ("snapshots", "journal", "adopted", "artefacts", "sequence"):
        for folder, _, files in sorted(os.walk(staged / name)):
            for file in sorted(files):
                path = Path(folder, file)
                if file != "lock.mdb":
                    yield str(path.relative_to(staged)), path.stat().st_size


def _write(
    staged: RunDir,
    file: Path,
    statement: Statement,
    notes: bytes,
    places: list[tuple[str, int]],
    progress: Progress,
    fresh: Fresh,
) -> Exported:
    """Under a temporary name, durable; then its own."""
    _sweep(file)
    beside = file.parent / f".{file.name}.{os.urandom(8).hex()}"
    try:
        with storage(f"cannot write {file}"):
            beside.mkdir(mode=0o700)
            partial = beside / file.name
            with open(partial, "xb") as target:
                _pack(staged, target, statement, notes, places, progress, fresh)
                target.flush()
                os.fsync(target.fileno())
            failpoint("export.written")
            _require_new(file)
            os.rename(partial, file)
            failpoint("export.renamed")
            sync_directory(file.parent)
            return Exported(file, statement, file.stat().st_size)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _pack(
    staged: RunDir,
    target: IO[bytes],
    statement: Statement,
    notes: bytes,
    places: list[tuple[str, int]],
    progress: Progress,
    fresh: Fresh,
) -> None:
    def advance(done: int) -> None:
        fresh()
        progress(done, statement.bytes)

    run = statement.run
    with Packer(target, statement.at, advance) as packer:
        packer.add_bytes(run, archive.STATEMENT, archive.encode_statement(statement))
        packer.add_bytes(run, archive.README, notes)
        for place, size in places:
            with os.fdopen(open_regular(staged.path, place), "rb") as source:
                packer.add(run, place, source, size)
            failpoint("export.packed")
        packer.add_bytes(run, archive.SUMS, archive.encode_sums(packer.sums))


def _sweep(file: Path) -> None:
    """Remove what exports to this name left that died: nothing was written there for an hour."""
    mine = re.compile(rf"\.{re.escape(file.name)}\.[0-9a-f]{{16}}")
    before = time.time() - LEFTOVER_SECONDS
    with contextlib.suppress(OSError):
        for entry in os.scandir(file.parent):
            if mine.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                times = [one.stat(follow_symlinks=False).st_mtime for one in os.scandir(entry.path)]
                if max(times, default=entry.stat().st_mtime) < before:
                    shutil.rmtree(entry.path, ignore_errors=True)
