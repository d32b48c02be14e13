"""Reading back all of a run: sequence, snapshots, journal.

Owns what is looked at and in which order; what a digest is, is `snapshot`'s and `journal`'s.
Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from walrecover import snapshot
from walrecover.entries import Entry, SnapshotRef
from walrecover.errors import WalrecoverError
from walrecover.journal import examine_all, find_streams
from walrecover.rundir import RunDir

UNITS = {"sequence": "entries", "snapshot": "bytes", "stream": "events"}


class Checked(NamedTuple):
    """A part of a run. `size`: in `UNITS`; of what is damaged, what was good. No `problem`: it is
    whole."""

    what: Literal["sequence", "snapshot", "stream"]
    name: str
    size: int
    problem: str | None = None


def verify(run: RunDir, entries: Sequence[Entry]) -> Iterator[Checked]:
    """Every part of a run whose sequence could be read, each as it is done."""
    yield Checked("sequence", "", len(entries))
    yield from snapshots(run, snapshot.live(list(entries)))
    yield from streams(run)


def snapshots(run: RunDir, refs: Iterable[SnapshotRef]) -> Iterator[Checked]:
    for ref in refs:
        try:
            yield Checked("snapshot", ref.name, snapshot.verify(run, ref).bytes())
        except (WalrecoverError, OSError) as error:
            yield Checked("snapshot", ref.name, 0, str(error))


def streams(run: RunDir) -> Iterator[Checked]:
    for stream, report in examine_all(find_streams(run.journal)).items():
        yield Checked("stream", str(stream), report.entries, report.problem)
