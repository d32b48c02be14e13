"""The columns of the read model's tables, as rows.

Owns the field names, which are the columns; what they hold is `telling`'s and `stepping`'s. Times
are Unix seconds; lists and maps are JSON text.
"""

from __future__ import annotations

from typing import NamedTuple


class RunRow(NamedTuple):
    """One run at a glance. `goodput`: a share; the seven kinds of time in seconds."""

    state: str
    holder: str
    last_step: int
    latest: float
    attempts: int
    recovery_point: int | None
    recovery_verified: int
    committed_at: float | None
    goodput: float | None
    wall: float | None
    productive: float | None
    reexecuted: float | None
    capture_stall: float | None
    detection: float | None
    restart: float | None
    restore: float | None
    idle: float | None
    failures: int
    cause: str
    evidence: str
    decision: str
    reason: str


class AttemptRow(NamedTuple):
    """One attempt. Steps from `superseded_from` on do not count any more."""

    number: int
    nonce: str
    began: float
    ended: float | None
    host: str
    pid: int
    world: int | None
    base_step: int | None
    first_step: int | None
    last_step: int | None
    superseded_from: int | None
    fenced: int
    cause: str
    evidence: str
    artefacts: str
    decision: str
    reason: str
    delay: float | None
    environment: str
    spent: str | None


class SnapshotRow(NamedTuple):
    """One commit that counts. `status`: verified, committed, rejected, left or retired."""

    entry: int
    step: int
    attempt: int
    nonce: str
    name: str
    end: int
    manifest: str
    committed_at: float
    finished: int
    status: str
    reason: str
    bytes: int | None
    seconds: float | None


class RecoveryRow(NamedTuple):
    """How one attempt came to be: from the failure before it to its own training."""

    attempt: int
    planned_at: float
    failed_at: float | None
    cause: str
    evidence: str
    decision: str
    reason: str
    delay: float | None
    base_step: int | None
    rejected: str
    rewind: str | None
    lost_steps: int | None
    planning: float | None
    begun_at: float | None
    restored_at: float | None
    restoring: float | None
    training_at: float | None
    verdict: str
    said: str
    verified_at: float | None


class Story(NamedTuple):
    """All rows of one run."""

    run: RunRow
    attempts: list[AttemptRow]
    snapshots: list[SnapshotRow]
    recoveries: list[RecoveryRow]


class StepRow(NamedTuple):
    """A completed step. `scalars`: all of them, where `loss` does not say it all."""

    stream: int
    step: int
    lsn: int
    at: float
    epoch: int
    loss: float | None
    lr: float | None
    grad_norm: float | None
    scalars: str | None


class EventRow(NamedTuple):
    """Any other event. `body`: its fields as JSON, digests in hexadecimal."""

    stream: int
    lsn: int
    run: int
    at: float
    type: str
    step: int | None
    body: str
