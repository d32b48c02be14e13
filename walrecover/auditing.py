"""Reading a run's streams for the ledger: the history over all attempts and forks, judged.

Owns which streams and which of their steps are read, and what is said where they cannot be. What
they prove is `tiling`'s. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from walrecover import booking, lineage
from walrecover import entries as model
from walrecover.booking import Wanted
from walrecover.entries import Ancestor, Entry
from walrecover.journal import StreamId, find_streams
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence as RunSequence
from walrecover.tiling import Chapter, Judgement, judge

RANK = "rank-"

Streams = dict[int, tuple[StreamId, Path]]
"""Those of an attempt's ranks."""


def audit(run: RunDir) -> Judgement:
    """What the surviving history consumed, proved or refuted. Raises Corrupt for a sequence that
    cannot be read; damage of a stream is named in what is unproven."""
    entries = RunSequence(run.sequence).read()
    return judge(chapters(run, entries), model.skips(entries))


def chapters(run: RunDir, entries: Sequence[Entry]) -> list[Chapter]:
    """The surviving history, oldest attempt first, parents of a fork included."""
    history = list(reversed(lineage.history(run.name, entries)))
    streams = {one: _streams(run, one) for one in history}
    lasts = {one: _last(one, entries, streams[one].values()) for one in history}
    books = booking.books(
        [
            Wanted(stream, path, one.base, lasts[one])
            for one in history
            for stream, path in streams[one].values()
        ]
    )
    found = []
    for one in history:
        own = {rank: books[stream] for rank, (stream, _) in streams[one].items()}
        readable = {rank: read.book for rank, read in own.items() if read.book is not None}
        losses = tuple(read.problem for read in own.values() if read.problem)
        found.append(Chapter(one, lasts[one], readable, losses))
    return found


def _streams(run: RunDir, one: Ancestor) -> Streams:
    """By rank."""
    return {
        int(stream.writer.removeprefix(RANK)): (stream, path)
        for stream, path in find_streams(run._replace(name=one.run).journal)
        if (stream.attempt, stream.nonce) == (one.attempt, one.nonce)
        and stream.writer.removeprefix(RANK).isdigit()
    }


def _last(one: Ancestor, entries: Sequence[Entry], streams: Iterable[tuple[StreamId, Path]]) -> int:
    """The last step of an attempt that counts. Of one that is open: the one that all its ranks have
    completed, and none below its newest snapshot, which all ranks have made."""
    if one.cut is not None:
        return one.cut
    committed = [
        commit.snapshot.step
        for commit in model.commits(entries)
        if (commit.snapshot.attempt, commit.snapshot.nonce) == (one.attempt, one.nonce)
    ]
    reached = booking.last_steps(list(streams)).values()
    return max([one.base, *committed, min(reached, default=0)])
