"""Where a run would lie: the folder, its mount, what is free there, and what stands in the way.

Owns reading /proc/self/mountinfo and statvfs; must not write anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from walrecover.findings.facts import MountPoint, Outcome, Place, Snapshots
from walrecover.findings.mounts import Mount, mount_of, parse_mounts
from walrecover.rundir import RunDir

Mounts: TypeAlias = Sequence[Mount]


def mounts() -> Mounts:
    """None where /proc is not there: then nothing is said of mounts."""
    try:
        data = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return []
    return parse_mounts(os.fsdecode(data))


def look(run: RunDir, mounts: Mounts) -> Place:
    """The run's own folder where it is there, else the directory of all runs."""
    folders = [run.root, run.path.parent, run.path]
    inner = [run.sequence, run.snapshots, run.attempts]
    if run.journal_root is None:
        inner.append(run.journal)
    own = run.path if os.path.isdir(run.path) else run.root
    return look_at(own, [*folders, *inner], mounts)


def look_at(path: Path, folders: Sequence[Path], mounts: Mounts) -> Place:
    """`folders`: what must be a folder there, or not be there yet."""
    anchor = _nearest(path)
    place = Place(
        path=os.fspath(path),
        anchor=os.fspath(anchor),
        blocker=_blocker([path, *folders]),
        mount=mount_of(mounts, os.path.realpath(anchor)),
    )
    return _with_space(place, anchor)


def with_trial(place: Place, steps: Mapping[str, Outcome], reserve: Outcome | None = None) -> Place:
    return msgspec.structs.replace(
        place, rehearsal=dict(steps), reserve=reserve if reserve else Outcome()
    )


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it."""
    while not os.path.isdir(path) and path != path.parent:
        path = path.parent
    return path


def _blocker(folders: Sequence[Path]) -> str:
    """What is there and is no folder: of each path itself, and of what lies above it."""
    for folder in folders:
        above = _nearest(folder)
        if above == folder:
            continue
        step = above / folder.relative_to(above).parts[0]
        if os.path.lexists(step):
            try:
                os.stat(step)
            except PermissionError:
                continue  # a matter of rights
            except OSError:
                return f"{step} is a link that leads nowhere"
            return f"{step} is no folder"
    return ""


def _with_space(place: Place, folder: Path) -> Place:
    try:
        found = os.statvfs(folder)
    except OSError:
        return place
    if not found.f_blocks:  # a file system that stores nothing
        return place
    root = os.geteuid() == 0  # who may use what is kept for root
    return msgspec.structs.replace(
        place,
        free_bytes=(found.f_bfree if root else found.f_bavail) * found.f_frsize,
        free_inodes=found.f_ffree if root else found.f_favail,
        counts_inodes=found.f_files > 0,
    )


def wanted(known: Snapshots | None, keep: int) -> int:
    """Bytes that the snapshots to come need beside those that are there."""
    return known.bytes * max(1, keep + 1 - known.existing) if known else 0


def mount_point(place: Place, run: RunDir) -> MountPoint | None:
    """What else lies in the folder where a bind was mounted."""
    if place.mount is None or not place.mount.is_bind:
        return None
    point = Path(place.mount.point)
    root = Path(os.path.realpath(run.root))
    own = {".gitignore", "runs"} if point == root else {"lost+found"}
    if root.parent == point:
        own.add(root.name)
    try:
        others = sum(entry.name not in own for entry in os.scandir(point))
        owner = point.stat().st_uid
        has_runs = (root / "runs").is_dir() and any(os.scandir(root / "runs"))
    except OSError:
        return None
    return MountPoint(os.fspath(point), owner, others, has_runs)


def container() -> str:
    """The mark of a container, or ""."""
    for mark in ("/.dockerenv", "/run/.containerenv"):
        if os.path.exists(mark):
            return f"{mark} is there"
    return ""
