"""Reading a run's streams for the ledger: the history over all attempts and forks, judged.

Owns which streams and which of their steps are read, and what is said where they cannot be. What
they prove is `tiling`'s. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from walrecover import entries as model
from walrecover import lineage
from walrecover.entries import Ancestor, Entry
from walrecover.errors import WalrecoverError
from walrecover.events import StepCompleted
from walrecover.journal import START, Reader, Report, StreamId, examine_all, find_streams
from walrecover.ledger import Book
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence as RunSequence
from walrecover.tiling import Chapter, Judgement, judge

RANK = "rank-"
TAIL_EVENTS = 64


class _Stream(NamedTuple):
    path: Path
    report: Report


def audit(run: RunDir) -> Judgement:
    """What the surviving history consumed, proved or refuted. Raises Corrupt for a sequence that
    cannot be read; damage of a stream is named in what is unproven."""
    entries = RunSequence(run.sequence).read()
    return judge(chapters(run, entries), model.skips(entries))


def chapters(run: RunDir, entries: Sequence[Entry]) -> list[Chapter]:
    """The surviving history, oldest attempt first, parents of a fork included."""
    history = list(reversed(lineage.history(run.name, entries)))
    streams = _streams(run, history)
    found = []
    for one in history:
        own = streams[one]
        last = one.cut if one.cut is not None else _reached(one, entries, own)
        books: dict[int, Book] = {}
        losses = []
        for rank, stream in own.items():
            if stream.report.problem:
                losses.append(stream.report.problem)
            if not stream.report.readable:
                continue
            book = books[rank] = Book(one.base, last)
            try:
                _read(stream, book)
            except (WalrecoverError, OSError) as error:
                losses.append(str(error))
        found.append(Chapter(one, last, books, tuple(losses)))
    return found


def _streams(run: RunDir, history: Sequence[Ancestor]) -> dict[Ancestor, dict[int, _Stream]]:
    """The ranks' streams of each attempt, by rank, each read by a child process first."""
    wanted = {(one.run, one.attempt, one.nonce): one for one in history}
    places: dict[StreamId, tuple[Ancestor, Path]] = {}
    for name in dict.fromkeys(one.run for one in history):
        for stream, path in find_streams(run._replace(name=name).journal):
            one = wanted.get((name, stream.attempt, stream.nonce))
            if one is not None and stream.writer.removeprefix(RANK).isdigit():
                places[stream] = (one, path)
    reports = examine_all([(stream, path) for stream, (_, path) in places.items()])
    found: dict[Ancestor, dict[int, _Stream]] = {one: {} for one in history}
    for stream, (one, path) in places.items():
        found[one][int(stream.writer.removeprefix(RANK))] = _Stream(path, reports[stream])
    return found


def _reached(one: Ancestor, entries: Sequence[Entry], streams: Mapping[int, _Stream]) -> int:
    """The last step of an open attempt that counts: the one that all its ranks have completed, and
    none below its newest snapshot, which all ranks have made."""
    committed = [
        commit.snapshot.step
        for commit in model.commits(entries)
        if (commit.snapshot.attempt, commit.snapshot.nonce) == (one.attempt, one.nonce)
    ]
    reached = [_last_step(stream) for stream in streams.values()]
    return max([one.base, *committed, min(reached, default=0)])


def _last_step(stream: _Stream) -> int:
    """The last step of a stream; 0 for none. Looks at its end first."""
    last, look = stream.report.last, TAIL_EVENTS
    if not stream.report.readable:
        return 0
    try:
        with Reader(stream.path) as reader:
            while True:
                first = max(0, last - look)
                after = reader.cursor_at(first) if first else START
                steps = [
                    e.step for _, e in reader.read(after, last) if isinstance(e, StepCompleted)
                ]
                if steps or not first:
                    return max(steps, default=0)
                look *= 8
    except (WalrecoverError, OSError):
        return 0  # its reading for the ledger will say so


def _read(stream: _Stream, book: Book) -> None:
    with Reader(stream.path) as reader:
        for payloads in reader.payloads(upto=stream.report.last):
            book.read(payloads)
