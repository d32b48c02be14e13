"""What is there of a run already: its size, its owner, who may use it, its newest decision.

Owns reading these from the folders; nothing is verified (recovery does that), nothing changed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from walrecover import entries
from walrecover.errors import WalrecoverError
from walrecover.findings.facts import Belongs, Sharing, Snapshots, Theirs
from walrecover.findings.sizes import of_manifest
from walrecover.manifest import MAX_MANIFEST_BYTES, parse_snapshot_name
from walrecover.rundir import RunDir

QUICK_BYTES = 4 << 20
"""A larger manifest takes longer than a preflight should."""

MANIFEST = "manifest.json"
_ENTRY = re.compile(r"[0-9]{8,}\.json")


def user() -> tuple[int, str]:
    uid = os.geteuid()
    return uid, name_of(uid)


def name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _whole_snapshots(run: RunDir) -> list[Path]:
    """Those that have a manifest, the newest first."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(run.snapshots):
            parsed = parse_snapshot_name(entry.name)
            if parsed and os.path.exists(os.path.join(entry.path, MANIFEST)):
                found.append((parsed[0], entry.name, Path(entry.path)))
    return [path for *_, path in sorted(found, reverse=True)]


def snapshots(run: RunDir, most_bytes: int = MAX_MANIFEST_BYTES) -> Snapshots | None:
    """By the newest manifest that can be read."""
    folders = _whole_snapshots(run)
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            with open(folder / MANIFEST, "rb") as file:
                data = file.read(most_bytes + 1)
            if len(data) <= most_bytes:
                size, files = of_manifest(data)
                return Snapshots(size, files, f"as {folder.name} does", len(folders))
    return None


def newest_decision(run: RunDir) -> float | None:
    """When the newest entry of the sequence was made, by the clock of its host."""
    with contextlib.suppress(OSError, WalrecoverError):
        names = [name for name in os.listdir(run.sequence) if _ENTRY.fullmatch(name)]
        if names:
            newest = max(names, key=lambda name: int(name.partition(".")[0]))
            with open(run.sequence / newest, "rb") as file:
                data = file.read(entries.MAX_ENTRY_BYTES)
            return entries.decode(data, int(newest.partition(".")[0])).at
    return None


def belongs(run: RunDir) -> Belongs | None:
    for folder in (run.path, run.root):
        with contextlib.suppress(OSError):
            uid = folder.stat().st_uid
            return Belongs(os.fspath(folder), uid, name_of(uid))
    return None


def theirs(run: RunDir, *, thorough: bool) -> Theirs | None:
    """The first folder or file that this user cannot use. A snapshot that cannot be read is no
    end, where an older one can: only a thorough look names it."""
    for path, wants in _needed(run, thorough):
        mode = os.R_OK if wants == "read" else os.W_OK | os.X_OK
        if os.path.lexists(path) and not os.access(path, mode, effective_ids=True):
            with contextlib.suppress(OSError):
                found = path.stat()
                owner = name_of(found.st_uid)
                return Theirs(os.fspath(path), owner, stat.S_IMODE(found.st_mode), wants)
    return None


def _needed(run: RunDir, thorough: bool) -> Iterator[tuple[Path, str]]:
    for folder in (run.sequence, run.snapshots, run.journal, run.attempts):
        nearest = next((f for f in (folder, *folder.parents) if os.path.isdir(f)), folder)
        if nearest == run.root or run.root in nearest.parents:
            yield nearest, "write"
    yield from ((path, "read") for path in _files(run.sequence))
    for folder in _whole_snapshots(run)[:1] if thorough else ():
        yield from ((path, "read") for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_file())
    return []


def sharing(run: RunDir) -> Sharing | None:
    """What another user of the group meets on the way to the newest snapshot."""
    above = run.root.parent
    try:
        found = above.stat()
    except OSError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    # Where each user has a group of their own, every folder may be written by the group.
    meant = bool(mode & stat.S_ISGID) or bool(mode & stat.S_IWGRP and found.st_gid != found.st_uid)
    if not os.path.isdir(run.root):
        group = _group_name(found.st_gid)
        return Sharing(os.fspath(run.root), 0o700, group, meant, made=False) if meant else None
    group = _group_name(run.root.stat().st_gid)
    for path in _on_the_way(run):
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            needed = stat.S_IRGRP | (stat.S_IXGRP if os.path.isdir(path) else 0)
            if mode & needed != needed:
                return Sharing(os.fspath(path), mode, group, meant)
    return Sharing("", 0, group, meant)


def _on_the_way(run: RunDir) -> Iterator[Path]:
    yield from (run.root, run.path.parent, run.path, run.sequence)
    yield from _files(run.sequence)
    yield run.snapshots
    for folder in _whole_snapshots(run)[:1]:
        yield folder
        yield from _files(folder)
