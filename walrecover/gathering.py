"""All of a run as it was at one reading of its sequence, gathered under another name.

Owns what of a run is worth keeping, and the order in which a living run is read: its entries, then
what they name. What does not verify is left out and named. The run itself is only read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import msgspec
from blake3 import blake3

from walrecover import archive, snapshot, verifying
from walrecover import entries as model
from walrecover.adoption import Kept
from walrecover.archive import LeftOut
from walrecover.entries import Entry, SnapshotRef
from walrecover.errors import BadInput, Corrupt, WalrecoverError
from walrecover.files import make_directory, open_regular, read_regular, storage
from walrecover.journal import copy_stream, examine_all, find_streams
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.staging import Fresh, link_or_copy

_PIECE_BYTES = 1 << 20


def gather(run: RunDir, staged: RunDir, fresh: Fresh) -> tuple[list[Entry], tuple[LeftOut, ...]]:
    """Put the run together in the empty folders of `staged`: its entries, and what was left out.
    Raises BadInput (nothing there), Corrupt (its sequence), StorageFailed."""
    with storage(f"cannot put {run.path} together"):
        entries = link_snapshots(run, staged)
        left_out = _verify_snapshots(staged, snapshot.live(entries), fresh)
        left_out += _copy_streams(run, staged, entries, fresh)
        left_out += _copy_adopted(run.path, staged.path)
        _copy_artefacts(run.path, staged.path)
        for number in range(1, len(entries) + 1):
            place = f"sequence/{number:08d}.json"
            _copy(run.path, place, staged.path)
    return entries, tuple(left_out)


def link_snapshots(run: RunDir, staged: RunDir) -> list[Entry]:
    """The entries, once all the snapshots that they name have a second name in `staged`, where no
    retirement takes them away. Raises BadInput, Corrupt, OSError."""
    sequence = Sequence(run.sequence)
    while True:
        entries = sequence.read()
        if not entries:
            raise BadInput(f"run {run.name} has nothing to export: nobody has attached to it")
        missing = {ref.manifest for ref in snapshot.live(entries) if not _link(run, staged, ref)}
        if not missing & model.retired(sequence.read()):
            return entries  # else take what replaced those that were retired meanwhile
        shutil.rmtree(staged.snapshots)
        make_directory(staged.snapshots)


def _link(run: RunDir, staged: RunDir, ref: SnapshotRef) -> bool:
    """Whether all of a snapshot is there to be linked. What is wrong with it shows when the staged
    run is verified."""
    try:
        for name in (f"{ref.name}/manifest.json", *snapshot.load_manifest(run, ref).files()):
            target = staged.snapshots / name
            if not os.path.lexists(target):
                make_directory(target.parent)
                link_or_copy(run.snapshots / name, target)
    except FileNotFoundError:
        return False
    except WalrecoverError:
        return os.path.lexists(run.snapshots / ref.name / "manifest.json")
    return True


def _verify_snapshots(staged: RunDir, refs: list[SnapshotRef], fresh: Fresh) -> list[LeftOut]:
    """What is damaged goes, but for the files that a whole snapshot lists."""
    left_out, listed = [], set()
    for one, ref in zip(verifying.snapshots(staged, refs), refs, strict=True):
        fresh()
        if one.problem:
            left_out.append(LeftOut("snapshot", one.name, one.problem))
        else:
            listed |= {f"{ref.name}/manifest.json", *snapshot.files_of(staged, ref)}
    for folder in os.scandir(staged.snapshots):
        for file in os.scandir(folder.path):
            if f"{folder.name}/{file.name}" not in listed:
                os.unlink(file.path)
    return left_out


def _copy_streams(run: RunDir, staged: RunDir, entries: list[Entry], fresh: Fresh) -> list[LeftOut]:
    known = {(entry.number, entry.nonce) for entry in model.attempts(entries)}
    found = [
        (stream, path)
        for stream, path in find_streams(run.journal)
        if (stream.attempt, stream.nonce) in known
    ]
    left_out = []
    reports = examine_all(found)
    for stream, path in found:
        report = reports[stream]
        if report.problem:
            kept = f"events 1 to {report.last} are kept" if report.readable else "nothing is kept"
            left_out.append(LeftOut("stream", str(stream), f"{report.problem}; {kept}"))
        if report.readable:
            target = staged.stream(*stream)
            make_directory(target)
            copy_stream(path, stream, target, report.last, size=report.bytes, breathe=fresh)
    return left_out


def _copy_adopted(run: Path, staged: Path) -> list[LeftOut]:
    """Versions of the script's own files whose bytes are those of their records."""
    left_out = []
    for record in sorted((run / "adopted" / "records").glob("*.json")):
        place = f"adopted/records/{record.name}"
        try:
            _copy_version(run, staged, place)
        except FileNotFoundError:
            continue  # thinned out meanwhile, record first
        except (msgspec.MsgspecError, Corrupt) as error:
            left_out.append(LeftOut("file", place, str(error)))
    for name in ("running", "forgotten"):
        with contextlib.suppress(FileNotFoundError):
            _copy(run, f"adopted/{name}", staged)
    return left_out


def _copy_version(run: Path, staged: Path, place: str) -> None:
    record = read_regular(run, place, archive.MAX_STATEMENT_BYTES)
    kept = msgspec.json.decode(record, type=Kept)
    name = kept.path.rpartition("/")[2][-200:]
    if not archive.is_plain(name):
        raise Corrupt(f"an archive cannot name {kept.path!r}")
    bytes_at = f"adopted/files/{kept.number:08d}-{name}"
    if _copy(run, bytes_at, staged) != kept.digest:
        (staged / bytes_at).unlink()
        raise Corrupt(f"the bytes of {bytes_at} are not the ones that were kept")
    _copy(run, place, staged)


def _copy_artefacts(run: Path, staged: Path) -> None:
    for path in sorted((run / "artefacts").glob("*/*")):
        with contextlib.suppress(Corrupt, FileNotFoundError):
            _copy(run, str(path.relative_to(run)), staged)


def _copy(source: Path, place: str, target: Path) -> str:
    """Copy a regular file; the blake3 of its bytes. Raises Corrupt for a link."""
    hasher = blake3()
    with os.fdopen(open_regular(source, place), "rb") as file:
        make_directory((target / place).parent)
        with open(target / place, "xb") as copy:
            while piece := file.read(_PIECE_BYTES):
                hasher.update(piece)
                copy.write(piece)
    return hasher.hexdigest()
