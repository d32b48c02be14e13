"""What a run's folded state is told as: rows of runs, attempts, snapshots, recoveries.

Pure: a function of entries, records and of what is known of the holders' processes; no clock, no
files, no SQL. What events become by themselves is `stepping`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from walrecover import entries as model
from walrecover import events as ev
from walrecover import goodput
from walrecover.cli.views import Alive, flow, state_word
from walrecover.entries import AttemptEntry, Holder
from walrecover.state import RunState, StreamKey, StreamRecord
from walrecover.verdicts import is_good, said
from walrecover_daemon.columns import AttemptRow, RecoveryRow, RunRow, SnapshotRow, Story

Captures = Mapping[StreamKey, Mapping[str, tuple[int, float]]]
"""By stream and snapshot's name: bytes that the rank wrote, and seconds that it took."""


class _Attempt(NamedTuple):
    """An attempt with what its streams say, and what `flow` reads from that."""

    entry: AttemptEntry
    ranks: list[StreamRecord]
    notes: StreamRecord
    told: dict[str, Any]

    @property
    def latest(self) -> float:
        return max((record.latest for record in [*self.ranks, self.notes]), default=0.0)


def story(state: RunState, captures: Captures, alive: Alive, here: Holder) -> Story:
    """`alive`: whether a holder lives; `here`: who looks, so that a lost host can be told."""
    word = state_word(state, alive)
    newest = max((record.latest for record in state.records.values()), default=0.0)
    spent = goodput.split(state, newest if word == "running" else None)
    told = flow(state, spent, alive=alive, here=here)
    streams: dict[tuple[int, str], dict[str, StreamRecord]] = {}
    for key, record in state.records.items():
        streams.setdefault((key.attempt, key.nonce), {})[key.writer] = record
    found = []
    for entry, item in zip(model.attempts(state.entries), told, strict=True):
        own = streams.get((entry.number, entry.nonce), {})
        ranks = [record for writer, record in sorted(own.items()) if writer.startswith("rank-")]
        found.append(_Attempt(entry, ranks, own.get("supervisor", StreamRecord()), item))
    verified = {manifest for record in state.records.values() for manifest in record.verified}
    return Story(
        _run(state, word, newest, spent, told, verified),
        [_attempt(state, one, after) for one, after in pairwise([*found, None]) if one],
        _snapshots(state, captures, verified),
        [_recovery(before, one) for before, one in pairwise([None, *found]) if _recovers(one)],
    )


def _run(
    state: RunState,
    word: str,
    latest: float,
    spent: goodput.Goodput | None,
    told: list[dict[str, Any]],
    verified: set[str],
) -> RunRow:
    newest, live = model.newest_attempt(state.entries), state.candidates
    ends = [item for item in told if item["cause"]]
    last = ends[-1] if ends else {}
    times: dict[str, Any] = {k: spent.seconds[k] if spent else None for k in goodput.KINDS}
    return RunRow(
        word,
        str(newest.holder) if newest else "",
        state.last_step(),
        latest,
        len(told),
        live[0].snapshot.step if live else None,
        int(bool(live) and live[0].snapshot.manifest in verified),
        live[0].at if live else None,
        spent.share if spent else None,
        spent.wall if spent else None,
        **times,
        failures=spent.rate.failures if spent else 0,
        **{key: last.get(key, "") for key in ("cause", "evidence", "decision", "reason")},
    )


def _attempt(state: RunState, one: _Attempt, after: _Attempt | None) -> AttemptRow:
    entry, told = one.entry, one.told
    exited, decided = _ended(one), _decided(one)
    late = after is not None and one.latest > after.entry.at
    return AttemptRow(
        entry.number,
        entry.nonce,
        entry.at,
        (exited.at or None) if exited else None,
        entry.holder.host,
        entry.holder.pid,
        told["ranks"],
        told["recovery_point"],
        told["first_step"],
        told["last_step"],
        _superseded_from(state, one),
        int(late or told["cause"] == "fenced"),
        told["cause"],
        told["evidence"],
        _json(told["artefacts"]),
        told["decision"],
        told["reason"],
        decided.delay if decided else None,
        _json(told["environment"]),
        _json(told["spent"]) if told["spent"] else None,
    )


def _superseded_from(state: RunState, one: _Attempt) -> int | None:
    """The first step that does not count; None where all do, or none is made."""
    last = one.told["last_step"]
    if last is None:
        return None
    for link in state.chain:
        if (link.attempt, link.nonce) == (one.entry.number, one.entry.nonce):
            cut = link.cut
            return cut + 1 if cut is not None and last > cut else None
    first: int = one.told["first_step"]
    return first


def _snapshots(state: RunState, captures: Captures, verified: set[str]) -> list[SnapshotRow]:
    entries = state.entries
    places = {entry.id: number for number, entry in enumerate(entries, start=1)}
    void = model.retired(entries)
    live = {commit.snapshot.manifest for commit in state.candidates}
    rejected = {r.manifest: r.reason for a in model.attempts(entries) for r in a.plan.rejected}
    sizes = _sizes(captures)
    found = []
    for commit in model.commits(entries):
        ref = commit.snapshot
        if ref.manifest in void:
            status = "retired"
        elif ref.manifest in live:
            status = "verified" if ref.manifest in verified else "committed"
        else:
            status = "rejected" if ref.manifest in rejected else "left"
        size, seconds = sizes.get(ref.name, (None, None))
        found.append(
            SnapshotRow(
                places[commit.id],
                ref.step,
                ref.attempt,
                ref.nonce,
                ref.name,
                int(ref.end),
                ref.manifest,
                commit.at,
                int(commit.finished),
                status,
                rejected.get(ref.manifest, ""),
                size,
                seconds,
            )
        )
    return found


def _sizes(captures: Captures) -> dict[str, tuple[int, float]]:
    """By snapshot: the bytes of all ranks, and the seconds of the slowest."""
    found: dict[str, tuple[int, float]] = {}
    for own in captures.values():
        for name, (size, seconds) in own.items():
            total, slowest = found.get(name, (0, 0.0))
            found[name] = (total + size, max(slowest, seconds))
    return found


def _recovers(one: _Attempt | None) -> bool:
    return one is not None and (one.entry.number > 1 or one.entry.plan.base is not None)


def _recovery(before: _Attempt | None, one: _Attempt | None) -> RecoveryRow:
    assert one is not None
    plan, told = one.entry.plan, one.told
    ended = before.told if before else {}
    decided = _decided(before) if before else None
    proofs = [record.proofs[-1] for record in one.ranks if record.proofs]
    worst = min(
        proofs, key=lambda it: (is_good(it), not isinstance(it, ev.ResumeDiverged)), default=None
    )
    return RecoveryRow(
        one.entry.number,
        one.entry.at,
        _failed_at(before) if before else None,
        ended.get("cause", ""),
        ended.get("evidence", ""),
        ended.get("decision", ""),
        ended.get("reason", ""),
        decided.delay if decided else None,
        plan.base.step if plan.base else None,
        _json(told["rejected"]),
        _json(told["rewind"]) if told["rewind"] else None,
        told["lost_steps"],
        told["stages"]["planned"],
        min((r.begun.at for r in one.ranks if r.begun and r.begun.at), default=None),
        max((r.resumed.at for r in one.ranks if r.resumed and r.resumed.at), default=None),
        told["stages"]["restored"],
        max((r.spent.since for r in one.ranks if r.spent.since), default=None),
        type(worst).__name__.removeprefix("Resume").lower() if worst else "",
        said(worst) if worst else "",
        max((proof.at for proof in proofs if proof.at), default=None),
    )


def _failed_at(one: _Attempt) -> float | None:
    """When the attempt failed, as far as anybody said; else when it was last heard of."""
    exited = _ended(one)
    raised = [record.raised[0].at for record in one.ranks if record.raised]
    if exited:
        raised.append(exited.seen or exited.at)
    return min(raised, default=one.latest or None)


def _ended(one: _Attempt) -> ev.WorkerExited | None:
    return one.notes.exited[-1] if one.notes.exited else None


def _decided(one: _Attempt) -> ev.RestartDecided | None:
    return one.notes.decided[-1] if one.notes.decided else None


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def captured(event: ev.ShardsWritten, key: StreamKey) -> tuple[str, tuple[int, float]]:
    """The snapshot that a rank wrote its part of, and how much in what time."""
    name = model.snapshot_name(event.step, key.attempt, key.nonce, event.end)
    return name, (sum(file.bytes for file in event.files), event.seconds)


def note_captures(
    into: dict[str, tuple[int, float]],
    key: StreamKey,
    pairs: Iterable[tuple[int, ev.Event | ev.Unknown]],
) -> None:
    for _, event in pairs:
        if isinstance(event, ev.ShardsWritten):
            name, what = captured(event, key)
            into[name] = what
