"""Retention by rules: which snapshots stay, which go, and why each.

Owns the rules and the decision, a function of the entries, the time and what is known to verify.
What may go at all is `entries.voidable`'s (rule 10): no rule overrides it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from walrecover import entries as model
from walrecover.entries import CommitEntry, Entry, SnapshotRef
from walrecover.errors import BadInput

LEAST_KEPT = 2
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Values = Mapping[str, Mapping[int, float]]
"""What was journaled at a step, by metric and step."""


class Best(NamedTuple):
    """Keep the snapshot with the least, or the greatest, value of a metric."""

    metric: str
    way: Literal["min", "max"]


class Rules(NamedTuple):
    """What is to be kept (specs/03-sequence.md). `younger_than`: seconds."""

    keep_last: int = 3
    keep_every: int | None = None
    best: tuple[Best, ...] = ()
    pins: frozenset[int] = frozenset()
    younger_than: float | None = None
    said: str = ""
    """How the person wrote `younger_than`."""


class Verdict(NamedTuple):
    """What becomes of one snapshot, and why."""

    commit: CommitEntry
    kept: bool
    reason: str


def parse_best(text: str) -> Best:
    """`loss:min`. Raises BadInput."""
    metric, _, way = text.rpartition(":")
    if not metric or way not in ("min", "max"):
        raise BadInput(f"--best {text}: give a metric and which end is best, such as loss:min")
    return Best(metric, "min" if way == "min" else "max")


def parse_age(text: str, option: str = "--older-than") -> float:
    """`7d` in seconds. Raises BadInput."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise BadInput(f"{option} {text}: give a number and its unit, such as 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def decide(
    entries: Sequence[Entry],
    rules: Rules,
    *,
    now: float,
    values: Values,
    verified: frozenset[str],
    files: Callable[[SnapshotRef], frozenset[str] | None],
) -> list[Verdict]:
    """Every snapshot that is not retired, those on the chain first, newest first.

    `now`: Unix time. `verified`, `files`: as for `entries.retirable`. Raises BadInput for a pin or
    a metric that no snapshot has.
    """
    live = model.candidates(entries)
    wanted = _wanted(live, rules, now, values)
    gone = set(model.voidable(entries, verified, wanted.keys(), files))
    why = _hindrance(entries, verified)
    verdicts = [
        Verdict(commit, False, "no rule keeps it")
        if commit.snapshot in gone
        else Verdict(commit, True, wanted.get(commit.snapshot.manifest, why))
        for commit in live
    ]
    void = model.retired(entries) | {commit.snapshot.manifest for commit in live}
    off = [c for c in reversed(model.commits(entries)) if c.snapshot.manifest not in void]
    return verdicts + [
        Verdict(commit, False, "off the chain")
        if commit.snapshot in gone
        else Verdict(commit, True, why)
        for commit in off
    ]


def _wanted(
    live: Sequence[CommitEntry], rules: Rules, now: float, values: Values
) -> dict[str, str]:
    """The manifests that rules keep, with the first reason for each."""
    wanted: dict[str, str] = {}

    def keep(commit: CommitEntry, reason: str) -> None:
        wanted.setdefault(commit.snapshot.manifest, reason)

    steps = {commit.snapshot.step for commit in live}
    for pin in sorted(rules.pins - steps):
        raise BadInput(f"--pin {pin}: there is no snapshot of that step")
    for commit in live:
        if commit.snapshot.step in rules.pins:
            keep(commit, "pinned")
    last = max(rules.keep_last, LEAST_KEPT)
    for commit in live[:last]:
        keep(commit, f"of the newest {last}")
    for best in rules.best:
        commit, value = _best(live, best, values)
        keep(commit, f"best {best.metric}: {value:g}")
    if rules.keep_every:
        for multiple, commit in _every(live, rules.keep_every).items():
            keep(commit, f"the first from step {multiple} on")
    if rules.younger_than is not None:
        for commit in live:
            if now - commit.at < rules.younger_than:
                keep(commit, f"not older than {rules.said or f'{rules.younger_than:g}s'}")
    return wanted


def _every(live: Sequence[CommitEntry], every: int) -> dict[int, CommitEntry]:
    """The oldest snapshot of each stretch of so many steps, by where the stretch begins."""
    return {commit.snapshot.step // every * every: commit for commit in live}  # newest first


def _best(live: Sequence[CommitEntry], best: Best, values: Values) -> tuple[CommitEntry, float]:
    by_step = values.get(best.metric, {})
    known = [
        (by_step[c.snapshot.step], c)
        for c in reversed(live)
        if not math.isnan(by_step.get(c.snapshot.step, math.nan))
    ]
    if not known:
        named = ", ".join(sorted(values)) or "none"
        raise BadInput(
            f"--best {best.metric}: no snapshot's step has that scalar in the journal (there are: "
            f"{named})"
        )
    pick = min if best.way == "min" else max
    value, commit = pick(known, key=lambda one: one[0])
    return commit, value


def _hindrance(entries: Sequence[Entry], verified: frozenset[str]) -> str:
    """Why what no rule keeps stays."""
    newest = model.newest_attempt(entries)
    if newest is None:
        return "no attempt has begun"
    own = [c for c in model.candidates(entries) if c.snapshot.nonce == newest.nonce]
    if not any(commit.snapshot.manifest in verified for commit in own):
        return f"attempt {newest.number} has no snapshot that was read back yet"
    return "no two newer ones are known to verify and share no file"
