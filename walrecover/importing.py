"""A run brought back from an archive: unpacked aside, checked, verified, and given its name.

Owns the order of an import's writes (specs/20-archive.md). Everything in the archive is hostile
until `archive` and `tarball` have accepted it, and the run until it verifies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from walrecover import archive, imported, verifying
from walrecover.archive import Statement
from walrecover.errors import BadInput, Corrupt, StorageFailed, Torn, UnsupportedVersion
from walrecover.exporting import Progress
from walrecover.failpoints import failpoint
from walrecover.files import make_directory, storage, sync_directory, sync_file
from walrecover.imported import Imported
from walrecover.rundir import RunDir, check_name
from walrecover.sequence import Sequence
from walrecover.staging import Fresh, aside, place, require_absent, sync_tree
from walrecover.tarball import Member, Unpacker


class Brought(NamedTuple):
    """A run that was brought back."""

    run: RunDir
    statement: Statement


def bring_back(
    file: Path,
    root: Path,
    *,
    name: str | None = None,
    journal: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Brought:
    """Make the archive's run a run below `root`, under its own name or another.

    Raises BadInput (no archive, the name is taken), UnsupportedVersion, Torn, Corrupt,
    StorageFailed; then there is no run.
    """
    with _opened(file) as source, _named(file):
        total = os.fstat(source.fileno()).st_size
        unpacker = Unpacker(
            source, file, archive.MAX_STATEMENT_BYTES + archive.MEMBER_BYTES,
            lambda done: progress(done, total),
        )  # fmt: skip
        members = unpacker.members()
        sums: dict[str, str] = {}
        statement = _statement(file, next(members, None), sums)
        run = RunDir(root, check_name(name or statement.run), journal)
        require_free_name(run)
        with aside(run) as staged, storage(f"cannot make {run.path}"):
            _require_room(staged.path, statement)
            unpacker.allow(archive.most_bytes(statement))
            _unpack(statement, members, staged, sums)
            _verify(statement, staged)
            failpoint("import.verified")
            imported.write(staged, Imported(str(file), statement.entries, time.time()))
            sync_tree(staged.path)
            with journal_placed(staged, run):
                place(staged, run, "run")
                failpoint("import.renamed")
                sync_directory(run.path.parent)
    return Brought(run, statement)


def _opened(file: Path) -> IO[bytes]:
    try:
        return open(file, "rb")
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Say of which archive it is that something is wrong."""
    try:
        yield
    except (Corrupt, UnsupportedVersion) as error:
        raise type(error)(f"{file}: {error}") from None


def require_free_name(run: RunDir) -> None:
    """Raises BadInput where a run, or somebody's journals, have the name."""
    require_absent(run, "run")
    if run.journal_root is not None and os.path.lexists(run.journal_root / run.name):
        raise BadInput(
            f"{run.journal_root / run.name} holds journals already: choose another name by --name, "
            f"or remove them where no run needs them"
        )


def _statement(file: Path, first: Member | None, sums: dict[str, str]) -> Statement:
    if first is None or first.name.split("/")[1:] != [archive.STATEMENT]:
        raise BadInput(f"{file} is not an archive of a run: it does not begin with a statement")
    if first.size > archive.MAX_STATEMENT_BYTES:
        raise Corrupt(f"its statement has {first.size} bytes")
    data = b"".join(first.pieces)
    statement = archive.decode_statement(data)
    sums[archive.require_place(statement.run, first.name)] = hashlib.sha256(data).hexdigest()
    return statement


def _require_room(folder: Path, statement: Statement) -> None:
    """An archive that states more than there is room for fills no disk before that shows."""
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if statement.bytes > free or (space.f_favail and statement.files > space.f_favail):
        raise StorageFailed(
            f"the archive states {statement.bytes} bytes in {statement.files} files, and {free} "
            f"bytes are free below {folder.parent}"
        )


def _unpack(
    statement: Statement, members: Iterator[Member], staged: RunDir, sums: dict[str, str]
) -> None:
    """Write every member to its place, durable, and hold all of them against the sums."""
    fresh = Fresh(staged.path)
    said: dict[str, str] | None = None
    left, files = statement.bytes, statement.files
    for member in members:
        where = archive.require_place(statement.run, member.name)
        if said is not None:
            raise Corrupt(f"{where} comes behind the sums")
        if where == archive.SUMS:
            if member.size > archive.most_sums(statement):
                raise Corrupt(f"its sums have {member.size} bytes, for {statement.files} files")
            said = archive.decode_sums(b"".join(member.pieces))
            continue
        left, files = left - member.size, files - 1
        if left < 0 or files < 0:
            raise Corrupt(f"it holds more than it states, at {where}")
        if where in sums:
            raise Corrupt(f"it holds {where} twice")
        if where == archive.README:  # about the archive, no part of a run
            sums[where] = _sum(member)
            continue
        sums[where] = _write(staged.path / where, member, fresh)
        failpoint("import.unpacked")
    if said is None:
        raise Torn(f"it is cut short: it has no {archive.SUMS}")
    archive.require_same(said, sums)
    if left or files:
        raise Corrupt(f"it holds {left} bytes and {files} files less than it states")


def _sum(member: Member) -> str:
    digest = hashlib.sha256()
    for piece in member.pieces:
        digest.update(piece)
    return digest.hexdigest()


def _write(path: Path, member: Member, fresh: Fresh) -> str:
    """The SHA-256 of what was written, durable."""
    digest = hashlib.sha256()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "xb", opener=_private) as target:
        for piece in member.pieces:
            digest.update(piece)
            target.write(piece)
            fresh()
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _verify(statement: Statement, staged: RunDir) -> None:
    """All of the run is whole, but for the snapshots that the statement leaves out."""
    entries = Sequence(staged.sequence).read()
    if len(entries) != statement.entries or not entries:
        raise Corrupt(f"its sequence has {len(entries)} entries, and it states {statement.entries}")
    lacking = {one.name for one in statement.left_out if one.what == "snapshot"}
    for one in verifying.verify(staged, entries):
        if one.problem and not (one.what == "snapshot" and one.name in lacking):
            raise Corrupt(f"its {one.what} {one.name} does not verify: {one.problem}")


@contextlib.contextmanager
def journal_placed(staged: RunDir, run: RunDir) -> Iterator[None]:
    """Where journals lie elsewhere, they are there before the run is, and not without it."""
    if run.journal_root is None:
        yield
        return
    make_directory(run.journal_root)
    beside, placed = (
        run.journal_root / name for name in (f".{run.name}.{os.urandom(8).hex()}", run.name)
    )
    try:
        shutil.copytree(staged.journal, beside / "journal")
        for path in beside.rglob("*.mdb"):
            sync_file(path)
        sync_tree(beside)
        os.rename(beside, placed)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    try:
        sync_directory(run.journal_root)
        shutil.rmtree(staged.journal)
        failpoint("import.journal")
        yield
    except BaseException:
        if not run.exists():
            shutil.rmtree(placed, ignore_errors=True)
        raise
