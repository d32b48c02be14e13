"""A run in memory, and its rows: when they are due, and that they are told.

Owns what is known of a followed run, and who of the holders is thought alive. Must not read
streams, or open a transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from walrecover import entries as model
from walrecover import imported
from walrecover.entries import Entry, Holder
from walrecover.errors import WalrecoverError
from walrecover.journal import StreamId
from walrecover.processes import identity
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.state import RunState, StreamKey
from walrecover_daemon import finding
from walrecover_daemon.columns import Story
from walrecover_daemon.finding import Place
from walrecover_daemon.living import Leases
from walrecover_daemon.reading import cause_of
from walrecover_daemon.streaming import Stream
from walrecover_daemon.tables import Tables
from walrecover_daemon.telling import story

SETTLE_SECONDS = 2.0
SHARE = 20
"""A run's rows may take this part of the time."""


class Run:
    def __init__(self, number: int, place: Place, folder: RunDir, born: str) -> None:
        self.id, self.place, self.dir, self.born = number, place, folder, born
        self.sequence = Sequence(folder.sequence)
        self.entries: list[Entry] = []
        self.streams: dict[StreamId, Stream] = {}
        self.told: Story | None = None
        self.mark = ""
        self.problem = ""
        self.due: float | None = None
        self.settled, self.cost = 0.0, 0.0

    def is_foreign(self, key: StreamId) -> bool:
        """The sequence does not know its attempt: it belonged to another run of this name."""
        known = {(entry.number, entry.nonce) for entry in model.attempts(self.entries)}
        return (key.attempt, key.nonce) not in known

    def stirred(self, *, tells: bool) -> None:
        """Its rows are due: now where its story changed, else before long."""
        now = time.monotonic()
        if tells:
            self.due = max(now, self.settled + self.cost * SHARE / 2)
        elif self.due is None:
            self.due = max(now + SETTLE_SECONDS, self.settled + self.cost * SHARE)

    def read_sequence(self, tables: Tables) -> bool:
        """Read its entries; False where they cannot be. Another run in its place is one anew."""
        try:
            mark = finding.mark_of(self.dir.sequence)
            self.entries, self.problem = self.sequence.read(), ""
        except (WalrecoverError, OSError) as error:
            self.problem, self.mark = cause_of(error)[1], ""
            return False
        self.mark = mark
        born = self.entries[0].id if self.entries else ""
        if self.born and born != self.born:
            tables.void_run(self.id)
            self.streams, self.told = {}, None
        self.born = born
        return True


class Stories:
    """Tells runs' rows, and knows whose holders were alive when it did."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._here, self._leases = tables, identity(), Leases()
        self._watched: dict[Place, tuple[Holder, Path, bool | None]] = {}

    def forget(self, place: Place) -> None:
        self._watched.pop(place, None)

    def living(self) -> list[Place]:
        return list(self._watched)

    def changed_holders(self) -> Iterator[Place]:
        """Runs whose holder has died, or come to life, since their rows were told."""
        for place, (holder, meeting, before) in self._watched.items():
            if self._leases.alive(holder, meeting) != before:
                yield place

    def settle(self, run: Run) -> None:
        began = time.monotonic()
        run.due = None
        if run.problem:
            self._tables.set_state(run.id, "damaged", run.problem)
        else:
            captures = {StreamKey(*k): one.folded.captures for k, one in run.streams.items()}
            records = {StreamKey(*k): one.folded.record for k, one in run.streams.items()}
            state = RunState(tuple(run.entries), records, imported.entries_of(run.dir))
            verdicts: dict[Holder, bool | None] = {}
            now = story(state, captures, self._aliveness(run, verdicts), self._here)
            self._tables.tell(run.id, run.told, now, run.born, run.mark)
            run.told = now
            self._watch(run, verdicts, state)
        run.settled = time.monotonic()
        run.cost = run.settled - began

    def _aliveness(
        self, run: Run, verdicts: dict[Holder, bool | None]
    ) -> Callable[[Holder], bool | None]:
        folders = {
            entry.holder: run.dir.meeting(entry.number, entry.nonce)
            for entry in model.attempts(run.entries)
        }

        def alive(holder: Holder) -> bool | None:
            if holder not in verdicts:
                verdicts[holder] = self._leases.alive(holder, folders[holder])
            return verdicts[holder]

        return alive

    def _watch(self, run: Run, verdicts: dict[Holder, bool | None], state: RunState) -> None:
        newest = model.newest_attempt(run.entries)
        verdict = verdicts.get(newest.holder) if newest else False
        if newest is None or state.finished or not state.driven_here(newest) or verdict is False:
            self._watched.pop(run.place, None)
        else:
            meeting = run.dir.meeting(newest.number, newest.nonce)
            self._watched[run.place] = newest.holder, meeting, verdict
