"""Retiring a run's snapshots by rules, beside a run that may be training.

Owns reading what the decision needs: what verifies, what the journal says of the metrics. The
decision is `retention`'s, the retirement `snapshot`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from walrecover import entries as model
from walrecover import events as ev
from walrecover import lineage, past, snapshot, verifying
from walrecover.entries import Entry, SnapshotRef
from walrecover.retention import Rules, Values, Verdict, decide
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.verifying import Checked


class Pruned(NamedTuple):
    """What was decided. `retired`: what has gone; nothing in a dry run. `sizes`: bytes that each
    snapshot lists, by manifest; `freed`: bytes that only those which go list. `damaged`: what did
    not read back. `gaps`: what of the journal could not be read for a metric."""

    verdicts: list[Verdict]
    retired: tuple[SnapshotRef, ...]
    sizes: dict[str, int]
    freed: int
    damaged: tuple[Checked, ...]
    gaps: tuple[str, ...]


def prune(
    run: RunDir,
    rules: Rules,
    *,
    now: float,
    dry_run: bool = False,
    told: Callable[[Checked], object] = lambda checked: None,
) -> Pruned:
    """Retire what no rule keeps, and delete its files. `told` hears of each snapshot read back.

    `now`: Unix time. Raises BadInput (a pin or a metric that no snapshot has), Corrupt (the
    sequence), StorageFailed.
    """
    entries = Sequence(run.sequence).read()
    verified, damaged = _read_back(run, entries, told)
    gaps: list[str] = []
    values = _values(run, entries, gaps) if rules.best else {}
    sizes = _sizes(run, entries)
    verdicts: list[Verdict] = []

    def choose(found: list[Entry]) -> tuple[SnapshotRef, ...]:
        nonlocal verdicts
        verdicts = decide(
            found, rules, now=now, values=values, verified=verified,
            files=lambda ref: snapshot.listed(run, ref),
        )  # fmt: skip
        return tuple(one.commit.snapshot for one in verdicts if not one.kept)

    if dry_run:
        gone = choose(entries)
    else:
        gone = snapshot.retire_chosen(run, choose)
    freed = _only_in(sizes, {ref.manifest for ref in gone}, verdicts)
    by_manifest = {manifest: sum(files.values()) for manifest, files in sizes.items()}
    retired = () if dry_run else gone
    return Pruned(verdicts, retired, by_manifest, freed, tuple(damaged), tuple(gaps))


def _read_back(
    run: RunDir, entries: list[Entry], told: Callable[[Checked], object]
) -> tuple[frozenset[str], list[Checked]]:
    """Candidates that verify, newest first, until two of them share no file. (The newest attempt's
    own come first.)"""
    verified: dict[str, frozenset[str]] = {}
    damaged = []
    for commit in model.candidates(entries):
        ref = commit.snapshot
        (checked,) = verifying.snapshots(run, [ref])
        told(checked)
        if checked.problem:
            damaged.append(checked)
            continue
        files = snapshot.listed(run, ref) or frozenset()
        apart = any(files.isdisjoint(other) for other in verified.values())
        verified[ref.manifest] = files
        if apart:
            break
    return frozenset(verified), damaged


def _values(run: RunDir, entries: list[Entry], gaps: list[str]) -> Values:
    """The scalars of the steps that have a snapshot, as the lowest rank journaled them."""
    steps = {commit.snapshot.step for commit in model.candidates(entries)}
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for told in past.read(run, lineage.history(run.name, entries), gaps):
        event = told.event
        if isinstance(event, ev.StepCompleted | ev.ScalarsArrived) and event.step in steps:
            for name, value in (event.scalars or {}).items():
                found[name].setdefault(event.step, value)
    return found


def _sizes(run: RunDir, entries: list[Entry]) -> dict[str, dict[str, int]]:
    """Bytes by file, of each snapshot whose manifest can be read."""
    return {
        ref.manifest: {path: at.bytes for path, at in snapshot.files_of(run, ref).items()}
        for ref in snapshot.live(entries)
        if snapshot.listed(run, ref) is not None
    }


def _only_in(sizes: dict[str, dict[str, int]], gone: set[str], verdicts: list[Verdict]) -> int:
    kept = {
        path
        for one in verdicts
        if one.commit.snapshot.manifest not in gone
        for path in sizes.get(one.commit.snapshot.manifest, {})
    }
    freed = {path: size for name in gone for path, size in sizes.get(name, {}).items()}
    return sum(size for path, size in freed.items() if path not in kept)
