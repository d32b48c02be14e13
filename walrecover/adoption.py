"""Adopted checkpoint files: what to keep, what to put back, and why. Pure.

Owns the decisions of `walrecover run --adopt` over plain data: what lies at a path, and what is
kept of it. Must not look at a file or a clock: `walrecover.adopt` looks, and does what is decided
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

KEEP = 3
"""Good versions kept of each family."""

How = Literal["reflink", "link", "copy"]
_NUMBER = re.compile(r"(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}|\d+")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A version that was whole, and is kept: the record that commits it.

    `number`: the order of adoption in the run. `path` is relative to the working directory.
    `format`, `assurance`: what was checked. `step`: about how many steps had been made.
    """

    number: int
    path: str
    bytes: int
    digest: str
    format: str
    assurance: str
    how: How
    mode: int
    mtime_ns: int
    step: int = 0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What lies at a path while nobody writes. "opaque": of a format that cannot show whether it
    is whole. `touched`: it may have changed since it was last looked at with nobody writing."""

    state: Literal["missing", "whole", "torn", "opaque"]
    bytes: int = 0
    digest: str = ""
    reason: str = ""
    touched: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """`kept` is what to put back; it may not verify, and then the next older one is asked for."""

    action: Literal["leave", "adopt", "put back", "put aside"]
    reason: str
    kept: Kept | None = None


def family(path: str) -> str:
    """Paths that differ only in numbers (or long hexadecimal names) are versions of one thing."""
    return _NUMBER.sub("#", path)


def retained(records: Iterable[Kept], keep: int) -> tuple[list[Kept], list[Kept]]:
    """The newest `keep` of each family, and the rest, oldest first."""
    left: dict[str, int] = {}
    stay: list[Kept] = []
    go: list[Kept] = []
    for record in sorted(records, key=lambda record: record.number, reverse=True):
        name = family(record.path)
        left[name] = left.get(name, keep) - 1
        (stay if left[name] >= 0 else go).append(record)
    return stay[::-1], go[::-1]


def judge(
    path: str, found: Found, records: Sequence[Kept], *, unsettled: bool, cut_off: bool
) -> Verdict:
    """What to do about a path before an attempt starts, or after it has ended.

    `records`: all that is kept. `unsettled`: the attempt before ended without this look, so that
    nobody but its processes has been here. `cut_off`: and the machine has started since, which may
    have undone a rename.
    """
    own = [record for record in records if record.path == path]
    newest = max(own, key=lambda record: record.number, default=None)
    if found.state == "whole":
        return _judge_whole(found, own, newest, cut_off)
    if found.state == "missing":
        return _judge_missing(path, newest, records, unsettled)
    if found.state == "opaque":
        return _judge_opaque(found, newest)
    if newest is not None:
        return Verdict("put back", found.reason, newest)
    if found.touched:
        return Verdict("put aside", f"{found.reason}, and no good version of it is kept")
    return Verdict("leave", f"{found.reason}, as it was before")


def _judge_whole(found: Found, own: list[Kept], newest: Kept | None, cut_off: bool) -> Verdict:
    if newest is None:
        return Verdict("adopt", "whole, and nothing is kept of it")
    if found.digest == newest.digest:
        return Verdict("leave", "whole, and kept")
    if cut_off and any(found.digest == record.digest for record in own):
        return Verdict("put back", "the machine lost the newer version", newest)
    return Verdict("adopt", "whole, and not what is kept")


def _judge_missing(
    path: str, newest: Kept | None, records: Sequence[Kept], unsettled: bool
) -> Verdict:
    if newest is None:
        return Verdict("leave", "missing, and nothing is kept of it")
    if not unsettled:
        return Verdict("leave", "missing: removed while nothing ran")
    name = family(path)
    if any(r.number > newest.number and family(r.path) == name for r in records):
        return Verdict("leave", "missing, and a newer one of its kind is kept")
    return Verdict("put back", "missing", newest)


def _judge_opaque(found: Found, newest: Kept | None) -> Verdict:
    if newest is None:
        return Verdict("leave", "of a format that does not show whether it is whole")
    if found.digest == newest.digest:
        return Verdict("leave", "the same bytes as are kept")
    if newest.format != "opaque":
        return Verdict("put back", f"no {newest.format} any more", newest)
    if found.bytes < newest.bytes:
        reason = f"{found.bytes} bytes, and the version that is kept has {newest.bytes}"
        return Verdict("put back", reason, newest)
    if not found.touched:
        return Verdict("leave", "as it was before")
    return Verdict("adopt", "not smaller than the version that is kept")
