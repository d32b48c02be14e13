"""The verdicts on a run's resumes, from its streams.

Owns finding a step's events without reading what lies before them; `overlap` judges. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from walrecover import entries as model
from walrecover import recovery
from walrecover.errors import WalrecoverError
from walrecover.events import StepCompleted
from walrecover.journal import Reader
from walrecover.overlap import Judged, Steps, judge
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.state import StreamKey

NEAR = 256
"""Events: so close to a step the stream is read on rather than searched."""

BEHIND = 64
"""Events behind the last step that may still belong to it: scalars that arrive, a capture."""


def steps_of(run: RunDir) -> Steps:
    """A reader of this run's streams. One that is not there, or damaged where it is to be read,
    gives what there is: the fold's record names the loss."""

    def steps(key: StreamKey, first: int, last: int) -> Iterator[Any]:
        path = run.stream(key.attempt, key.nonce, key.writer)
        try:
            with Reader(path) as reader:
                yield from _between(reader, first, last)
        except (WalrecoverError, OSError):
            return

    return steps


def verdicts(run: RunDir) -> list[Judged]:
    """The verdict on each resume of a run. Where there was none, no stream is read."""
    entries = Sequence(run.sequence).read()
    if len(model.attempts(entries)) < 2:
        return []
    return judge(recovery.fold_run(run, entries), steps_of(run))


def _between(reader: Reader, first: int, last: int) -> Iterator[Any]:
    behind = 0
    for _, event in reader.read(reader.cursor_at(_before(reader, first))):
        if behind or (isinstance(event, StepCompleted) and event.step > last):
            behind += 1
            if behind > BEHIND:
                return
        yield event


def _before(reader: Reader, step: int) -> int:
    """An LSN before the step's event, and not far before it."""
    low, high = 0, reader.head().lsn
    while high - low > NEAR:
        middle = (low + high) // 2
        found = _step_behind(reader, middle, high)
        if found is not None and found < step:
            low = middle
        else:
            high = middle
    return low


def _step_behind(reader: Reader, lsn: int, upto: int) -> int | None:
    """The first step completed behind an LSN."""
    for _, event in reader.read(reader.cursor_at(lsn), upto):
        if isinstance(event, StepCompleted):
            return event.step
    return None


__all__ = ["Judged", "judge", "steps_of", "verdicts"]
