"""Opening safely: what may be damaged is read by a child process first.

Owns the verdict on a stream's bytes. Must not open an environment in the caller's process, since
one flipped bit in LMDB's pages can end it by SIGBUS or SIGSEGV; must not decide what a damaged
stream means for recovery.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from walrecover.errors import Corrupt, StorageFailed, Torn, UnsupportedVersion, WalrecoverError
from walrecover.journal import metapages
from walrecover.journal.environment import DATA
from walrecover.journal.inspector import BY_DAMAGE, Inspector, Job
from walrecover.journal.reader import Rewound
from walrecover.journal.stream import START, Cursor, StreamId

PATIENCE_SECONDS = 60.0

_KINDS: dict[str, type[WalrecoverError]] = {
    kind.__name__: kind for kind in (Corrupt, Torn, Rewound, UnsupportedVersion, StorageFailed)
}


class Report(msgspec.Struct, frozen=True):
    """What a stream holds, and what is wrong behind its last good event.

    `first` and `last` are the LSNs read and found good (`last` is `first - 1` where there is
    none), `chain` the digest behind the last, `bytes` what the file takes. `kind` names the error
    that `check` raises.
    """

    first: int
    last: int
    chain: bytes
    kind: str = ""
    problem: str | None = None
    bytes: int = 0

    @property
    def head(self) -> Cursor:
        return Cursor(self.last, self.chain)

    @property
    def entries(self) -> int:
        """How many events were read and found good."""
        return self.last - self.first + 1

    @property
    def readable(self) -> bool:
        """There are good events. Where there is a problem, read them with `upto=report.last`."""
        return self.last >= self.first

    @property
    def torn(self) -> bool:
        """The file ends too early; what was read is whole."""
        return self.kind == Torn.__name__

    def check(self) -> None:
        """Raise the problem: Corrupt, Torn, Rewound, UnsupportedVersion or StorageFailed."""
        if self.problem is not None:
            raise _KINDS[self.kind](self.problem)


def examine(
    path: Path,
    stream: StreamId,
    after: Cursor | None = None,
    *,
    patience: float = PATIENCE_SECONDS,
) -> Report:
    """Read a stream from the cursor on with every check, in a child process."""
    cursors = {} if after is None else {stream: after}
    return examine_all([(stream, path)], cursors, patience=patience)[stream]


def examine_all(
    streams: Iterable[tuple[StreamId, Path]],
    after: Mapping[StreamId, Cursor] | None = None,
    *,
    patience: float = PATIENCE_SECONDS,
) -> dict[StreamId, Report]:
    """Examine many streams, by one child for as long as it lives.

    `patience` is how many seconds the child may be silent before that is a problem. Raises
    StorageFailed only where no child can be started.
    """
    cursors = after or {}
    jobs = [Job(stream, str(path), cursors.get(stream, START)) for stream, path in streams]
    seen = {job.stream: metapages.inspect(Path(job.path)) for job in jobs}
    reports: dict[StreamId, Report] = {}
    while left := [job for job in jobs if job.stream not in reports]:
        reports |= _read_some(left, patience)
    return {job.stream: _conclude(job, reports[job.stream], seen[job.stream]) for job in jobs}


def _conclude(job: Job, report: Report, seen: WalrecoverError | None) -> Report:
    """Damage seen in the meta pages explains whatever the reading met."""
    try:
        size = os.stat(Path(job.path) / DATA, follow_symlinks=False).st_size
    except OSError:
        size = 0
    kind, problem = report.kind, report.problem
    if seen is not None:
        kind, problem = type(seen).__name__, str(seen)
    if problem is not None and job.path not in problem:
        problem = f"{job.path}: {problem}"
    return msgspec.structs.replace(report, kind=kind, problem=problem, bytes=size)


def _read_some(jobs: list[Job], patience: float) -> dict[StreamId, Report]:
    """Reports on the first jobs, through the first that ended the child: at least one."""
    reports: dict[StreamId, Report] = {}
    index, cursor = 0, None
    with Inspector.start(jobs) as inspector:
        for said in inspector.said(patience):
            index, cursor = said.index, said.cursor
            if said.ended:
                job = jobs[index]
                reports[job.stream] = _report(job, cursor, said.kind, said.problem)
        status, silent = inspector.status(), inspector.silent
    words = f"{status}: {inspector.last_words}" if inspector.last_words else f"{status}"
    if cursor is None:
        raise StorageFailed(f"the process that examines the journal cannot start ({words})")
    job = jobs[index]
    if job.stream not in reports:
        reports[job.stream] = (
            _report(job, cursor, "Corrupt", f"reading behind event {cursor.lsn} does not end")
            if silent
            else _report_death(job, cursor, status, words, patience)
        )
    return reports


def _report_death(job: Job, cursor: Cursor, status: int, words: str, patience: float) -> Report:
    if -status not in BY_DAMAGE:
        problem = f"the process that examined it ended with {words}"
        return _report(job, cursor, "StorageFailed", problem)
    if job.chunk > 1:
        # Again, an event at a time, to know exactly how far it can be read.
        closer = msgspec.structs.replace(job, after=cursor, chunk=1)
        found = _read_some([closer], patience)[job.stream]
        return msgspec.structs.replace(found, first=job.after.lsn + 1)
    name = signal.Signals(-status).name
    problem = f"reading behind event {cursor.lsn} ends the process that does it by {name}"
    return _report(job, cursor, "Corrupt", problem)


def _report(job: Job, cursor: Cursor, kind: str, problem: str | None) -> Report:
    return Report(job.after.lsn + 1, cursor.lsn, cursor.chain, kind, problem)
