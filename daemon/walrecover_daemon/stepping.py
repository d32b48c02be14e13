"""What events become by themselves: rows of steps, and of everything else.

Pure, and the loop that decides how fast a journal is caught up with. Rows of a run as a whole are
`telling`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from walrecover import events as ev
from walrecover.events import Event, ScalarsArrived, StepCompleted, Unknown
from walrecover_daemon.columns import EventRow

LARGEST = 2**63 - 1
"""SQLite's integers have 64 bits, with a sign."""

QUIET = frozenset(
    {
        ev.StepCompleted,
        ev.ScalarsArrived,
        ev.LoopStalled,
        ev.DataOpened,
        ev.PassEnded,
        ev.ModulesImported,
        ev.PhasesMeasured,
        ev.Unknown,
    }
)
"""Events that change nothing of a run's story but how far it came and how its time adds up."""

_to_json = msgspec.json.Encoder(enc_hook=str).encode


class Late(NamedTuple):
    """Scalars for a step whose row is already there."""

    step: int
    scalars: dict[str, float]


class Batch(NamedTuple):
    """`late` comes before `steps`, which are rows as `StepRow` is. `tells`: whether anything
    changes the run's story."""

    late: list[Late]
    steps: list[tuple[Any, ...]]
    events: list[EventRow]
    tells: bool


def project(run: int, stream: int, pairs: Iterable[tuple[int, Event | Unknown]]) -> Batch:
    """The rows of events in a row of one stream."""
    done: dict[int, tuple[int, StepCompleted]] = {}
    arrived: dict[int, dict[str, float]] = {}
    late: list[Late] = []
    events: list[EventRow] = []
    tells = False
    for lsn, event in pairs:
        kind = type(event)
        if kind is StepCompleted and event.step <= LARGEST:  # type: ignore[union-attr]
            done[event.step] = (lsn, event)  # type: ignore[union-attr, assignment]
            if arrived:
                arrived.pop(event.step, None)  # type: ignore[union-attr]
        elif isinstance(event, ScalarsArrived):
            if event.step in done:
                arrived.setdefault(event.step, {}).update(event.scalars)
            elif event.step <= LARGEST:
                late.append(Late(event.step, event.scalars))
        else:
            events.append(_event(run, stream, lsn, event))
            tells = tells or kind not in QUIET
    return Batch(late, _steps(stream, done, arrived), events, tells)


def _steps(
    stream: int,
    done: dict[int, tuple[int, StepCompleted]],
    arrived: dict[int, dict[str, float]],
) -> list[tuple[Any, ...]]:
    """Rows in the order of `StepRow`: plain tuples, for there are very many."""
    rows = []
    for step, (lsn, event) in done.items():
        scalars = event.scalars
        if arrived and step in arrived:
            scalars = {**scalars, **arrived[step]}
        loss, text = told(scalars)
        epoch, lr = min(event.epoch, LARGEST), event.lr[0] if event.lr else None
        rows.append((stream, step, lsn, event.at, epoch, loss, lr, event.grad_norm, text))
    return rows


def told(scalars: dict[str, float]) -> tuple[float | None, str | None]:
    """The loss, where there is a finite one, and all scalars where that is not all."""
    loss = scalars.get("loss")
    if loss is None:
        if not scalars:
            return None, None
        name = next((name for name in scalars if "loss" in name.lower()), next(iter(scalars)))
        loss = scalars[name]
    elif len(scalars) == 1 and isfinite(loss):
        return loss, None
    return (loss if isfinite(loss) else None), _to_json(scalars).decode()


def merged(loss: float | None, text: str | None, more: dict[str, float]) -> dict[str, Any]:
    """The scalars of a row, and those that arrived later. What is null was not finite."""
    if text is not None:
        known = {k: float("nan") if v is None else v for k, v in msgspec.json.decode(text).items()}
    else:
        known = {} if loss is None else {"loss": loss}
    return {**known, **more}


def _event(run: int, stream: int, lsn: int, event: Event | Unknown) -> EventRow:
    if isinstance(event, Unknown):
        kind, fields = event.type, dict(event.fields)
    else:
        kind, fields = type(event).__name__, msgspec.to_builtins(event, builtin_types=(bytes,))
    fields.pop("type", None)
    at, step = fields.pop("at", 0.0), fields.get("step")
    return EventRow(
        stream,
        lsn,
        run,
        float(at) if isinstance(at, int | float) else 0.0,
        kind,
        step if isinstance(step, int) and -LARGEST <= step <= LARGEST else None,
        _to_json(plain(fields)).decode(),
    )


def plain(value: Any) -> Any:
    """With bytes in hexadecimal, and keys as text."""
    if isinstance(value, dict):
        return {k if isinstance(k, str) else str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.hex() if isinstance(value, bytes) else value
