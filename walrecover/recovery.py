"""The recovery decision: what the next attempt restores, what was rejected, what was lost.

Owns folding a run from its files, choosing the recovery point, and entering the next attempt with
its plan. It changes nothing but the sequence, by one entry; crashing anywhere in it and starting
over ends in the same plan (P7).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as Many
from pathlib import Path
from typing import NamedTuple

from walrecover import checkpoints, imported, lease, rewinding, snapshot
from walrecover import entries as model
from walrecover import skips as skipping
from walrecover.entries import (
    AttemptEntry,
    CommitEntry,
    Entry,
    Holder,
    Plan,
    Rejected,
    Rewind,
    Skip,
    SnapshotRef,
)
from walrecover.errors import (
    Corrupt,
    Fenced,
    NothingToResume,
    RunBusy,
    UnsupportedVersion,
    WalrecoverError,
)
from walrecover.events import RecoveryPlanned
from walrecover.failpoints import failpoint
from walrecover.journal import Cursor, Reader, StreamId, examine_all, find_streams
from walrecover.processes import is_alive
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.state import RunState, StreamKey, StreamRecord, fold

RESUME = ("auto", "must", "never")


class Begun(NamedTuple):
    """An attempt that was entered. `line` is what people read, `state` the run before it."""

    entry: AttemptEntry
    event: RecoveryPlanned
    line: str
    state: RunState


class Verdict(NamedTuple):
    """The recovery point (None: from the beginning), the candidates passed over, and how many ranks
    saved the recovery point."""

    base: SnapshotRef | None
    rejected: tuple[Rejected, ...]
    ranks: int = 0


def fold_run(run: RunDir, entries: Many[Entry] | None = None) -> RunState:
    """Fold all of a run. Damage in a stream is named in its record's `losses`, never raised:
    no state depends on it, and everything before the damage is used."""
    found = Sequence(run.sequence).read() if entries is None else entries
    return RunState(tuple(found), _records(find_streams(run.journal)), imported.entries_of(run))


def _records(streams: Many[tuple[StreamId, Path]]) -> dict[StreamKey, StreamRecord]:
    """The record of each stream: its checkpoint, and the tail behind that, which a child process
    has read first. Where a checkpoint does not fit its stream, all of the stream is read."""
    kept = {stream: found for stream, path in streams if (found := checkpoints.load(path, stream))}
    reports = examine_all(streams, {stream: cursor for stream, (cursor, _) in kept.items()})
    unfit = [item for item in streams if item[0] in kept and reports[item[0]].kind == "Rewound"]
    for stream, _ in unfit:
        del kept[stream]
    reports |= examine_all(unfit) if unfit else {}
    records: dict[StreamKey, StreamRecord] = {}
    for stream, path in streams:
        cursor, record = kept.get(stream, (None, StreamRecord()))
        records[StreamKey(*stream)] = record
        report = reports[stream]
        if report.problem:
            record.losses.append(f"{stream.writer} of attempt {stream.attempt}: {report.problem}")
        if report.readable:
            _fold_tail(path, stream, cursor, report.last, record)
    return records


def _fold_tail(
    path: Path, stream: StreamId, cursor: Cursor | None, last: int, record: StreamRecord
) -> None:
    """Fold what lies behind the cursor into the record, and keep the result where worth it."""
    key, before = StreamKey(*stream), record.lsn
    try:
        with Reader(path) as reader:
            for events, reached in reader.batches(cursor, last):
                fold((), {key: events}, {key: record})
                cursor = reached
    except (WalrecoverError, OSError) as error:
        # The child has read this much: it changed under the reader. What was folded counts.
        record.losses.append(f"{stream.writer} of attempt {stream.attempt}: {error}")
        return
    if cursor and not record.losses and record.lsn - before >= checkpoints.WORTH_EVENTS:
        checkpoints.store(path, stream, cursor, record)


def choose(run: RunDir, entries: Many[Entry], *, at: int | None = None) -> Verdict:
    """The newest candidate (at or before step `at`) that verifies, newest first along the chain.

    Damage that a plan has confirmed is off the chain for good; what could only not be read is
    tried again, until something is committed behind it (rule 5).
    """
    rejected: list[Rejected] = []
    for commit in [*model.retried(entries), *model.candidates(entries)]:
        ref = commit.snapshot
        if at is not None and ref.step > at:
            continue
        try:
            ranks = snapshot.verify(run, ref).world
        except (Corrupt, UnsupportedVersion) as error:
            rejected.append(Rejected(ref.step, ref.attempt, ref.manifest, str(error)))
        except OSError as error:
            reason = f"{ref.name} cannot be read: {error}"
            rejected.append(Rejected(ref.step, ref.attempt, ref.manifest, reason, confirmed=False))
        else:
            return Verdict(ref, tuple(rejected), ranks)
    return Verdict(None, tuple(rejected))


def rewound(run: RunDir, entries: Many[Entry], why: str) -> Plan:
    """The plan that goes back to before what was bad, and leaves out the data in between.

    Where the journal's losses say which step that was, the base is the newest candidate before it
    that verifies, and the beginning where no snapshot ever was older. Where they do not, it is the
    newest one behind the newest. Where there is none, the newest stands. What is passed over
    leaves the chain with the plan that says so, and never returns (rule 3).
    """
    bad, last = rewinding.judged(run, entries, why)
    live = model.candidates(entries)
    known = bad.step <= last
    before = bad.step if known else live[0].snapshot.step if live else 0
    verdict = choose(run, entries, at=before - 1) if live else Verdict(None, ())
    older = verdict.base is not None
    if not older and not (known and not verdict.rejected and not model.retired(entries)):
        verdict = choose(run, entries)
        if verdict.rejected and verdict.base is None:
            raise Corrupt(_nothing_verifies(run, verdict.rejected))
    base = verdict.base.step if verdict.base else 0
    left = tuple(
        Rejected(ref.step, ref.attempt, ref.manifest, f"left behind: {why}")
        for ref in (commit.snapshot for commit in live)
        if (older or not verdict.base) and ref.step >= before
    )
    skips = model.skips(entries)
    if why in rewinding.BY_DATA:
        skips = rewinding.left_out(run, entries, base, bad.step, last)
    return _plan(verdict._replace(rejected=(*left, *verdict.rejected)), skips, bad)


def _plan(verdict: Verdict, skips: tuple[Skip, ...], rewind: Rewind | None = None) -> Plan:
    base, rejected, ranks = verdict
    return Plan(base, rejected, skips=skips, rewind=rewind, ranks=ranks)


def _undone_rewind(state: RunState) -> str:
    """The cause for which the newest attempt's supervisor decided to go back, where it did not
    live to do so."""
    newest = model.newest_attempt(state.entries)
    if newest is None:
        return ""
    notes = state.of_attempt(newest.number, newest.nonce).get("supervisor")
    if notes is None or not notes.decided or notes.decided[-1].action != "rewind":
        return ""
    return notes.exited[-1].cause if notes.exited else "by order of the policy"


def begin_attempt(
    run: RunDir,
    holder: Holder,
    *,
    resume: str = "auto",
    succeeding: bool = False,
    rewind: str = "",
) -> Begun:
    """Enter the next attempt with its plan.

    `succeeding`: the holder's supervisor has entered one before, so that an attempt by anybody
    else in between is final (rule 15): Fenced. `rewind`: why the newest snapshot is to be left
    behind. Raises RunBusy, NothingToResume, Corrupt,
    UnsupportedVersion or StorageFailed; then nothing was entered."""
    began = time.monotonic()
    sequence = Sequence(run.sequence)
    state = RunState((), {})

    def decide(found: list[Entry]) -> Entry:
        nonlocal state
        require_free(run, found, holder, succeeding)
        state = fold_run(run, found)
        failpoint("recovery.folded")
        going_back = "" if resume == "never" else rewind or _undone_rewind(state)
        if resume == "never":
            plan = Plan(fresh=True)
        elif going_back:
            plan = rewound(run, found, going_back)
        else:
            plan = _plan(choose(run, found), model.skips(found))
        if plan.base is None and resume != "never":
            if plan.rejected and plan.rewind is None:
                raise Corrupt(_nothing_verifies(run, plan.rejected))
            if resume == "must":
                raise NothingToResume(f"run {run.name} has no committed snapshot to resume from")
        failpoint("recovery.verified")
        return AttemptEntry(
            id=os.urandom(8).hex(),
            at=time.time(),
            number=_next_number(found),
            nonce=os.urandom(4).hex(),
            plan=plan,
            holder=holder,
        )

    entries, _ = sequence.settle(decide)
    failpoint("recovery.planned")
    entry = entries[-1]
    assert isinstance(entry, AttemptEntry)
    event = planned_event(state, entry.plan, time.monotonic() - began)
    line = describe(run, entry, event, model.finished(entries))
    return Begun(entry, event, line, state)


def _next_number(found: Many[Entry]) -> int:
    """A fork's first attempt goes on counting from the one that made its snapshot."""
    newest, first = model.newest_attempt(found), model.origin(found)
    if newest is not None:
        return newest.number + 1
    return first.snapshot.attempt + 1 if first else 1


def planned_event(state: RunState, plan: Plan, seconds: float) -> RecoveryPlanned:
    last = state.last_step()
    base = plan.base.step if plan.base else 0
    return RecoveryPlanned(
        at=time.time(),
        plan=plan,
        last_step=last,
        lost_steps=max(0, last - base),
        losses=tuple(loss for record in state.records.values() for loss in record.losses),
        seconds=seconds,
    )


def describe(run: RunDir, entry: AttemptEntry, event: RecoveryPlanned, finished: bool) -> str:
    base, back = entry.plan.base, _said(entry.plan)
    if base is None:
        if entry.number == 1:
            return f"run {run.name}: new, in {run.path}"
        return f"run {run.name}: attempt {entry.number} starts from the beginning{back}"
    line = f"run {run.name}: attempt {entry.number} resumes after step {base.step}"
    if finished:
        line += " (finished)"
    if event.lost_steps:
        line += f", {event.lost_steps} completed steps are done again"
    for rejected in event.plan.rejected:
        line += f"; step {rejected.step} was rejected: {rejected.reason}"
    return line + back


def _said(plan: Plan) -> str:
    if plan.rewind is None:
        return ""
    skips = [skip for skip in plan.skips if skip.why == rewinding.because(plan.rewind.step)]
    left = f", and leaves out {skipping.told(skips)}" if skips else ""
    return f"; it goes back to before step {plan.rewind.step} ({plan.rewind.reason}){left}"


def _nothing_verifies(run: RunDir, rejected: Many[Rejected]) -> str:
    reasons = "; ".join(f"step {r.step}: {r.reason}" for r in rejected[:3])
    return (
        f"no snapshot of run {run.name} verifies ({reasons}). Mend the storage and run again, or "
        f"start over from the beginning with WALRECOVER_RESUME=never"
    )


def require_free(
    run: RunDir, entries: Many[Entry], holder: Holder, succeeding: bool = False
) -> None:
    """Raises RunBusy where the newest attempt's holder lives and is not `holder`'s own.

    A holder whose process cannot be seen from here is alive while its lease moves. One that came
    with an import holds another copy of the run.
    """
    newest = model.newest_attempt(entries)
    if newest is None:
        return
    other = newest.holder
    same = (other.boot, other.pid, other.started) == (holder.boot, holder.pid, holder.started)
    ours = bool(other.supervisor) and other.supervisor == holder.supervisor
    if same or ours or entries.index(newest) < imported.entries_of(run):
        return
    if succeeding:
        raise Fenced(f"attempt {newest.number} by {other} took the run over")
    alive = is_alive(other)
    if alive is None:
        alive = lease.is_held(run.meeting(newest.number, newest.nonce))
    if alive:
        raise RunBusy(f"the run is held by {other}, which is alive: end it, or wait for it")


def progress(run: RunDir, entry: AttemptEntry) -> tuple[bool, int]:
    """Whether some rank of the attempt finished restoring, and the last step it completed."""
    records = records_of(run, entry)
    restored = any(record.resumed is not None for record in records.values())
    return restored, max((record.last_step for record in records.values()), default=0)


def records_of(run: RunDir, entry: AttemptEntry, writer: str = "rank-") -> dict[str, StreamRecord]:
    """What the ranks of this attempt journaled, by writer; or that one alone."""
    streams = [
        (stream, path)
        for stream, path in find_streams(run.journal)
        if (stream.attempt, stream.nonce) == (entry.number, entry.nonce)
        and (stream.writer == writer or (writer == "rank-" and stream.writer.startswith(writer)))
    ]
    return {key.writer: record for key, record in _records(streams).items()}


def commits_at(entries: Many[Entry], at: int | None) -> list[CommitEntry]:
    """The candidates at or before a step."""
    return [c for c in model.candidates(entries) if at is None or c.snapshot.step <= at]


__all__ = [
    "RESUME",
    "Begun",
    "Verdict",
    "begin_attempt",
    "choose",
    "commits_at",
    "describe",
    "fold_run",
    "planned_event",
    "progress",
    "records_of",
    "require_free",
    "rewound",
]
