"""The fold: what a run's sequence and streams say, as one `RunState`.

Owns the meaning of events. Pure: no clock, no I/O, no torch. Streams never mix before the fold:
each has a record of its own, ordered by LSN, so that any interleaving gives the same state
(rule 11). What entries say is never overruled by an event.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from walrecover import entries as model
from walrecover import events as ev
from walrecover.entries import AttemptEntry, CommitEntry, Entry, Link
from walrecover.spent import Spent


class StreamKey(NamedTuple):
    """A writer of an attempt."""

    attempt: int
    nonce: str
    writer: str


class StreamRecord(msgspec.Struct):
    """What one stream says. `steps`: disjoint closed intervals of completed steps, ascending.

    `adopted`, `rejected`: the newest of each path. `latest`: when the last event came, in Unix
    time. A plain struct, so that it can be kept as the fold's checkpoint and compared with a full
    fold.
    """

    lsn: int = 0
    events: int = 0
    latest: float = 0.0
    spent: Spent = msgspec.field(default_factory=Spent)
    begun: ev.AttemptBegun | None = None
    steps: list[list[int]] = []
    resumed: ev.Resumed | None = None
    proofs: list[ev.ResumeVerified | ev.ResumeDiverged | ev.ResumeUnproven] = []
    planned: ev.RecoveryPlanned | None = None
    exited: list[ev.WorkerExited] = []
    raised: list[ev.ExceptionRaised] = []
    salvaged: list[ev.SalvageTried] = []
    decided: list[ev.RestartDecided] = []
    hangs: list[ev.HangDetected] = []
    measured: ev.PhasesMeasured | None = None
    pace: ev.PaceSet | None = None
    abandoned: list[ev.SnapshotAbandoned] = []
    verified: set[str] = set()
    retired: set[str] = set()
    stopped: ev.RunStopped | None = None
    finished: ev.RunFinished | None = None
    adopted: dict[str, ev.FileAdopted] = {}
    rejected: dict[str, ev.FileRejected] = {}
    put_back: list[ev.FileRestored] = []
    losses: list[str] = []

    @property
    def last_step(self) -> int:
        return self.steps[-1][1] if self.steps else 0


class RunState(NamedTuple):
    """The folded run. `records` by stream; the rest is read from `entries`. `imported`: how many
    of these came with an import, so that who drives them drives another copy."""

    entries: tuple[Entry, ...]
    records: dict[StreamKey, StreamRecord]
    imported: int = 0

    @property
    def chain(self) -> list[Link]:
        return model.chain(self.entries)

    @property
    def candidates(self) -> list[CommitEntry]:
        return model.candidates(self.entries)

    @property
    def finished(self) -> bool:
        return model.finished(self.entries)

    def driven_here(self, entry: AttemptEntry) -> bool:
        """Whether the holder of this attempt has anything to do with this run's directory."""
        return self.entries.index(entry) >= self.imported

    def of_attempt(self, number: int, nonce: str) -> dict[str, StreamRecord]:
        return {
            key.writer: record
            for key, record in self.records.items()
            if (key.attempt, key.nonce) == (number, nonce)
        }

    def completed(self, number: int, nonce: str) -> int:
        """The highest step that some rank of the attempt completed; 0 for none."""
        return max((r.last_step for r in self.of_attempt(number, nonce).values()), default=0)

    def last_step(self) -> int:
        """The last step that the newest attempt which completed any has reached."""
        for entry in reversed(model.attempts(self.entries)):
            reached = self.completed(entry.number, entry.nonce)
            if reached:
                return reached
        return 0

    def surviving(self) -> list[tuple[Link, int]]:
        """The links of the chain, oldest first, each with the last of its steps that counts."""
        counted = []
        for link in reversed(self.chain):
            reached = self.completed(link.attempt, link.nonce)
            counted.append((link, reached if link.cut is None else min(reached, link.cut)))
        return counted

    def superseded(self) -> dict[str, list[tuple[int, int]]]:
        """Steps that were completed and do not count any more, by attempt, as closed intervals."""
        links = {(link.attempt, link.nonce): link for link in self.chain}
        gone: dict[str, list[tuple[int, int]]] = {}
        for entry in model.attempts(self.entries):
            link = links.get((entry.number, entry.nonce))
            spans: set[tuple[int, int]] = set()
            for record in self.of_attempt(entry.number, entry.nonce).values():
                for first, last in record.steps:
                    if link is None:
                        spans.add((first, last))
                    elif link.cut is not None and last > link.cut:
                        spans.add((max(first, link.cut + 1), last))
            if spans:
                gone[entry.label] = sorted(spans)
        return gone


def apply(record: StreamRecord, event: ev.Event | ev.Unknown) -> StreamRecord:
    """Take one event of a stream into its record. Unknown events count and change nothing."""
    handler = _HANDLERS.get(type(event))
    if handler is not None:
        handler(record, event)
    record.events += 1
    record.latest = _moment(event)
    return record


def fold(
    entries: Sequence[Entry],
    streams: Mapping[StreamKey, Iterable[tuple[int, ev.Event | ev.Unknown]]],
    start: Mapping[StreamKey, StreamRecord] | None = None,
) -> RunState:
    """Fold (LSN, event) pairs of each stream, in order of LSN; an LSN seen before is skipped.

    `start` holds records from an earlier fold of the beginnings of the same streams; this one
    goes on with them, not with copies.
    """
    records: dict[StreamKey, StreamRecord] = dict(start or {})
    for key, pairs in streams.items():
        record = records.setdefault(key, StreamRecord())
        get = _HANDLERS.get
        last, count = record.lsn, record.events
        newest: ev.Event | ev.Unknown | None = None
        for lsn, event in pairs:
            if lsn <= last:
                continue
            last = lsn
            count += 1
            newest = event
            handler = get(type(event))
            if handler is not None:
                handler(record, event)
        record.lsn, record.events = last, count
        if newest is not None:
            record.latest = _moment(newest)
    return RunState(tuple(entries), records)


def _moment(event: ev.Event | ev.Unknown) -> float:
    """When an event came; 0 where it does not say."""
    at = event.fields.get("at") if isinstance(event, ev.Unknown) else event.at
    return at if isinstance(at, float) else 0.0


def _step(record: StreamRecord, event: Any) -> None:
    step = event.step
    record.spent.complete(step, event.at)
    steps = record.steps
    if steps and steps[-1][1] == step - 1:
        steps[-1][1] = step
    elif not any(first <= step <= last for first, last in steps):
        insort(steps, [step, step])


def _set(field: str) -> Any:
    def handler(record: StreamRecord, event: Any) -> None:
        setattr(record, field, event)

    return handler


def _append(field: str) -> Any:
    def handler(record: StreamRecord, event: Any) -> None:
        getattr(record, field).append(event)

    return handler


def _by_path(field: str) -> Any:
    def handler(record: StreamRecord, event: Any) -> None:
        getattr(record, field)[event.path] = event

    return handler


def _resumed(record: StreamRecord, event: Any) -> None:
    record.resumed = event
    record.spent.begin(event.at)


def _reached(record: StreamRecord, event: Any) -> None:
    record.spent.begin(event.at)


def _stalled(record: StreamRecord, event: Any) -> None:
    record.spent.stall(event.at, event.seconds, capture=not event.commit)


def _verified(record: StreamRecord, event: Any) -> None:
    record.verified.add(event.manifest)


def _retired(record: StreamRecord, event: Any) -> None:
    record.retired.update(event.names)


_HANDLERS: dict[type, Any] = {
    ev.AttemptBegun: _set("begun"),
    ev.StepCompleted: _step,
    ev.Resumed: _resumed,
    ev.PlaceReached: _reached,
    ev.LoopStalled: _stalled,
    ev.PaceSet: _set("pace"),
    ev.ResumeVerified: _append("proofs"),
    ev.ResumeDiverged: _append("proofs"),
    ev.ResumeUnproven: _append("proofs"),
    ev.RecoveryPlanned: _set("planned"),
    ev.WorkerExited: _append("exited"),
    ev.ExceptionRaised: _append("raised"),
    ev.SalvageTried: _append("salvaged"),
    ev.RestartDecided: _append("decided"),
    ev.HangDetected: _append("hangs"),
    ev.PhasesMeasured: _set("measured"),
    ev.SnapshotAbandoned: _append("abandoned"),
    ev.SnapshotVerified: _verified,
    ev.SnapshotsRetired: _retired,
    ev.RunStopped: _set("stopped"),
    ev.RunFinished: _set("finished"),
    ev.FileAdopted: _by_path("adopted"),
    ev.FileRejected: _by_path("rejected"),
    ev.FileRestored: _append("put_back"),
}
