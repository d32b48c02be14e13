"""Streams for tests: writing one, reading one, damaging one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb

from walrecover.events import AttemptBegun, Event, StepCompleted, Unknown
from walrecover.journal import Journal, Reader, StreamId

STREAM = StreamId(3, "9f2c01d7", "rank-0")


def path_of(root: Path, stream: StreamId = STREAM) -> Path:
    return root / f"a{stream.attempt}-{stream.nonce}" / stream.writer


def first_event(stream: StreamId = STREAM) -> AttemptBegun:
    attempt, nonce, writer = stream
    return AttemptBegun(run="test", attempt=attempt, nonce=nonce, writer=writer)


def create(root: Path, stream: StreamId = STREAM, **options: int) -> Journal:
    return Journal.create(
        path_of(root, stream), attempt=stream.attempt, first=first_event(stream), **options
    )


def step(number: int) -> StepCompleted:
    """The event with LSN `number + 1` of a stream that holds nothing but steps."""
    return StepCompleted(
        step=number, scalars={"loss": 1 / number}, batch=bytes([number % 256]) * 16
    )


def expected(last: int, stream: StreamId = STREAM) -> list[tuple[int, Event]]:
    """The events through LSN `last` of such a stream."""
    events: list[Event] = [first_event(stream), *(step(number) for number in range(1, last))]
    return list(enumerate(events[:last], 1))


def write(root: Path, steps: int, stream: StreamId = STREAM, *, group: int = 1) -> Path:
    """A closed stream of steps, committed in groups of this size."""
    with create(root, stream) as journal:
        for number in range(1, steps + 1):
            journal.append(step(number))
            if number % group == 0:
                journal.sync()
    return path_of(root, stream)


def read(path: Path) -> list[tuple[int, Event | Unknown]]:
    with Reader(path) as reader:
        return list(reader.read())


def rewrite(path: Path, change: Callable[[lmdb.Transaction[bytes]], object]) -> None:
    """Change what a closed stream's environment holds, behind the journal's back."""
    with (
        lmdb.open(str(path), map_size=0, lib_version=0) as environment,
        environment.begin(write=True) as transaction,
    ):
        change(transaction)
