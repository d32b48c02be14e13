"""Judges the places where a run is to lie: whether it lasts there, fits there, and may be written.

Owns the thresholds of storage; must not look at anything but the facts.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from walrecover.findings.facts import Facts, Outcome, Place
from walrecover.findings.finding import Finding, size
from walrecover.findings.mounts import LAYERED, VOLATILE, Mount
from walrecover.findings.table import CHECKS, FAILURE, NOTE, OK, WARNING

LITTLE_BYTES = 64 * 10**6
"""Less is said to be little where the size of a snapshot is not known."""

FEW_INODES = 64
"""Files that an attempt creates beside its snapshots, roundly."""

EMPTY_DIR = "kubernetes.io~empty-dir"

STEPS = {"make": "write", "folder": "fsync", "exclusive": "link"}
"""Steps of the rehearsal whose check has another name."""

OPTIONAL = {"direct"}
"""Steps without which a run works."""


def judge(facts: Facts) -> Iterator[Finding]:
    places = [facts.run] + ([facts.journal] if facts.journal else [])
    for place in places:
        yield from _directory(place)
        for finding in _rehearsal(place):
            if finding.check != "permission" or facts.theirs is None:  # which says more
                yield finding
        # Without its journal a run loses its history, and no state.
        yield from _lasting(place, FAILURE if place is facts.run else WARNING)
        yield from _options(place)
    yield from _layer(facts)
    yield from _bind(facts)
    yield from _network(facts)
    yield from _rights(facts)
    yield from _group(facts)
    yield from _room(facts)
    yield from _reserve(facts.run)
    yield from _inodes(facts)


def _directory(place: Place) -> Iterator[Finding]:
    if place.blocker:
        yield Finding("directory", FAILURE, f"{place.path} cannot be made: {place.blocker}")
    elif place.anchor == place.path:
        yield Finding("directory", OK, f"{place.path} is there")
    else:
        yield Finding("directory", OK, f"{place.path} can be made in {place.anchor}")


def _rehearsal(place: Place) -> Iterator[Finding]:
    """One finding for each step that was tried; a failure only where it was seen to fail."""
    for step, outcome in place.rehearsal.items():
        if outcome.errno:
            level = NOTE if step in OPTIONAL else FAILURE
            what = f"{_doing(step)} in {place.anchor} failed: {outcome.error}"
            yield Finding(_check_of(step, outcome, place), level, what)
        elif step in CHECKS:
            yield Finding(step, OK, f"{_doing(step)} in {place.anchor} works")


def _reserve(place: Place) -> Iterator[Finding]:
    """What the file system calls free, a quota may still refuse."""
    if place.reserve.errno:
        text = f"{place.anchor} refuses to reserve what its snapshots need: {place.reserve.error}"
        yield Finding("room", WARNING, text)


def _check_of(step: str, outcome: Outcome, place: Place) -> str:
    """What an error means: the same number says different things of different file systems."""
    if step in OPTIONAL:
        return step
    if outcome.errno == errno.EROFS:
        return "read-only"
    if outcome.errno in (errno.EACCES, errno.EPERM) and step in ("make", "write"):
        return "permission"
    if outcome.errno == errno.EDQUOT:
        return "full"
    if outcome.errno == errno.ENOSPC:
        return "inodes" if place.counts_inodes and place.free_inodes == 0 else "full"
    return STEPS.get(step, step)


def _doing(step: str) -> str:
    return {
        "make": "making a folder",
        "write": "writing a file",
        "fsync": "fsync of a file",
        "folder": "fsync of a folder",
        "rename": "renaming a file",
        "link": "a hard link",
        "exclusive": "refusing a hard link to a name that is taken",
        "direct": "writing with O_DIRECT",
    }[step]


def _lasting(place: Place, level: str) -> Iterator[Finding]:
    if place.mount is None:
        return
    if place.mount.kind in VOLATILE:
        yield Finding("volatile", level, f"{place.path} lies in memory: {place.mount}")
    else:
        yield Finding("volatile", OK, f"{place.path} lies on {place.mount}")


def _options(place: Place) -> Iterator[Finding]:
    """Options of a mount under which fsync does not do what it says."""
    if place.mount is None:
        return
    own = place.mount.own_options
    loose = [o for o in own if o in ("nobarrier", "barrier=0", "volatile", "fsync=volatile")]
    for option in loose:
        yield Finding(
            "unsafe-mount", WARNING, f"{place.mount.point} is mounted with the option {option}"
        )


def _layer(facts: Facts) -> Iterator[Finding]:
    for place in (facts.run, facts.journal):
        if place is not None and place.mount is not None:
            level, text = _layered(place.mount, facts.container)
            if text:
                yield Finding("layer", level, f"{place.path} lies {text}")


def _layered(mount: Mount, container: str) -> tuple[str, str]:
    if EMPTY_DIR in mount.root:
        return WARNING, f"in an emptyDir of Kubernetes, mounted at {mount.point}"
    if mount.point == "/" and mount.is_layer:
        return WARNING, f"in the topmost layer of a container or a live system: {mount}"
    if mount.kind in LAYERED:
        upper = mount.option("upperdir") or "a folder that is not named"
        return NOTE, f"on an overlay at {mount.point}, written to {upper}"
    if mount.point == "/" and container and mount.kind not in VOLATILE:
        # A virtual machine made from an image has the mark too, and a disk of its own.
        return NOTE, f"on the root of what may be a container ({container}): {mount}"
    return OK, ""


def _bind(facts: Facts) -> Iterator[Finding]:
    """An empty directory that was bound and belongs to root: what docker makes of a path that is
    not there. A directory that was made for this run may look the same."""
    mount, point = facts.run.mount, facts.mount_point
    if mount is None or point is None or not mount.is_bind:
        return
    text = f"{point.path} is a bind of {mount.root} of {mount.source}"
    if mount.root.endswith("/_data") or EMPTY_DIR in mount.root:
        yield Finding("bind", OK, f"{text}, a volume")
    elif point.others or point.runs:
        yield Finding("bind", OK, f"{text}, and not empty")
    else:
        owner = "root" if point.owner == 0 else f"user {point.owner}"
        level = WARNING if point.owner == 0 else NOTE
        yield Finding("bind", level, f"{text}, which is empty and belongs to {owner}")


def _network(facts: Facts) -> Iterator[Finding]:
    place = facts.journal or facts.run
    if place.mount is None:
        return
    if not place.mount.is_network:
        yield Finding("network", OK, f"journals lie on {place.mount.kind}, which is local")
        return
    kind = "a file system of FUSE" if place.mount.is_fuse else "a network file system"
    yield Finding(
        "network",
        WARNING if place.mount.is_fuse else FAILURE,
        f"journals would lie on {kind}: {place.mount}",
    )


def _rights(facts: Facts) -> Iterator[Finding]:
    uid, name = facts.user
    written = facts.run.rehearsal.get("write")
    if facts.theirs is not None:
        file = facts.theirs
        text = f"user {name} cannot {file.wants} {file.path}, which belongs to {file.owner}"
        yield Finding("permission", FAILURE, f"{text} (mode {file.mode:04o})")
    elif written is not None and not written.errno:
        yield Finding("permission", OK, f"user {name} may read and write there")
    if facts.belongs is not None:
        text = f"{facts.belongs.path} belongs to {facts.belongs.name}"
        if facts.belongs.uid == uid:
            yield Finding("owner", OK, text)
        else:
            yield Finding("owner", WARNING, f"{text}, and you are {name}")


def _group(facts: Facts) -> Iterator[Finding]:
    shared = facts.sharing
    if shared is None:
        return
    if not shared.closed:
        yield Finding("group", OK, f"users of the group {shared.group} can read all of the run")
        return
    yield Finding(
        "group",
        WARNING if shared.meant else NOTE,
        f"{shared.closed} {'has' if shared.made else 'will have'} mode {shared.mode:04o}: closed "
        f"to the group {shared.group}",
    )


def _room(facts: Facts) -> Iterator[Finding]:
    free, known = facts.run.free_bytes, facts.snapshots
    if free is None:
        return
    if known is None:
        yield Finding("size", NOTE, "there is no snapshot yet, and no --size was given")
        little = free < LITTLE_BYTES
        yield Finding("room", WARNING if little else OK, f"{size(free)} free at {facts.run.anchor}")
        return
    missing = max(1, facts.keep + 1 - known.existing)
    text = (
        f"{size(free)} free at {facts.run.anchor}; a snapshot takes {size(known.bytes)} "
        f"({known.source}), and {missing} more must fit: {facts.keep} to keep and the one in the "
        f"making" + (f", {known.existing} are there" if known.existing else "")
    )
    if free >= missing * known.bytes:
        yield Finding("room", OK, text)
    else:
        yield Finding("room", WARNING if free >= known.bytes else FAILURE, text)


def _inodes(facts: Facts) -> Iterator[Finding]:
    place = facts.run
    if place.free_inodes is None or any(f.check == "inodes" for f in _rehearsal(place)):
        return
    if not place.counts_inodes:
        yield Finding("inodes", OK, "the file system creates inodes as they are needed")
        return
    files = facts.snapshots.files if facts.snapshots else 5
    needed = FEW_INODES + (facts.keep + 1) * files
    text = f"{place.free_inodes} inodes free at {place.anchor}, about {needed} are needed"
    yield Finding("inodes", OK if place.free_inodes >= needed else WARNING, text)
