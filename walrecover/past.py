"""What the ranks journaled of a history, over attempts and over the runs that a fork comes from.

Owns finding those streams and reading them in the order of the history; must not judge it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from walrecover.entries import Ancestor, attempt_label
from walrecover.errors import WalrecoverError
from walrecover.events import Event, Unknown
from walrecover.journal import START, Reader, StreamId, examine_all, find_streams
from walrecover.rundir import RunDir

RANK = "rank-"


class Told(NamedTuple):
    """An event, and who journaled it."""

    of: Ancestor
    rank: int
    event: Event | Unknown


def ranks(run: RunDir, history: Sequence[Ancestor]) -> list[int]:
    """The ranks that journaled some of this history."""
    return sorted({_rank(stream) for one in history for stream, _ in _streams(run, one)})


def read(
    run: RunDir,
    history: Sequence[Ancestor],
    gaps: list[str],
    *,
    rank: int | None = None,
    after: int = 0,
) -> Iterator[Told]:
    """The events of this history, oldest attempt first, a rank's stream after the other.

    Steps that do not count (outside of what the history takes from an attempt) are left out. What
    cannot be read is named in `gaps`, and passed over. `rank`: of this one only; `after`: only what
    lies behind this step.
    """
    for one in reversed(history):
        if one.cut is not None and one.cut <= after:
            continue
        streams = _streams(run, one)
        if not streams:
            gaps.append(f"the journal of {_said(one)} is missing")
        streams = [item for item in streams if rank is None or _rank(item[0]) == rank]
        reports = examine_all(streams)
        for stream, path in streams:
            if problem := reports[stream].problem:
                gaps.append(f"{stream.writer} of {_said(one)}: {problem}")
            if reports[stream].readable:
                yield from _stream(one, stream, path, reports[stream].last, gaps, after)


def _streams(run: RunDir, one: Ancestor) -> list[tuple[StreamId, Path]]:
    found = [
        (stream, path)
        for stream, path in find_streams(run._replace(name=one.run).journal)
        if (stream.attempt, stream.nonce) == (one.attempt, one.nonce)
        and stream.writer.startswith(RANK)
    ]
    return sorted(found, key=lambda item: _rank(item[0]))


def _rank(stream: StreamId) -> int:
    return int(stream.writer.removeprefix(RANK))


def _stream(
    one: Ancestor, stream: StreamId, path: Path, last: int, gaps: list[str], after: int
) -> Iterator[Told]:
    rank, base = _rank(stream), max(one.base, after)
    try:
        with Reader(path) as reader:
            for events, _ in reader.batches(START, last):
                for _, event in events:
                    step = getattr(event, "step", None)
                    if step is None or (step > base and (one.cut is None or step <= one.cut)):
                        yield Told(one, rank, event)
    except (WalrecoverError, OSError) as error:
        gaps.append(f"{stream.writer} of {_said(one)}: {error}")


def _said(one: Ancestor) -> str:
    return f"attempt {attempt_label(one.attempt, one.nonce)} of run {one.run}"
