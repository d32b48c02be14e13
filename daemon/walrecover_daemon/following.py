"""Following: what has stirred is read on, and the run's rows are brought up to date.

Owns the runs that are held in memory, and when their rows are told. Must not look for runs
(`finding`) or read streams (`streaming`); it writes nothing but the read model.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from walrecover.errors import BadInput, WalrecoverError
from walrecover.journal import START, StreamId, find_streams
from walrecover.journal.stream import stream_at
from walrecover_daemon.finding import Finder, Place, Stirred, names_of
from walrecover_daemon.reading import Readers
from walrecover_daemon.readmodel import ReadModel
from walrecover_daemon.running import Run, Stories
from walrecover_daemon.streaming import SLICE, Pass, Stream, Streams
from walrecover_daemon.tables import StreamRow, Tables

MOST_RUNS = 256
"""Runs that are held in memory, and that one transaction goes through."""

REST_SECONDS = 60.0
"""A run that cannot be told is not looked at for so long."""

_UNTELLABLE = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""What somebody else's numbers and names may raise: nothing of the read model's or the disk's."""


class Follower:
    """`suspects`: streams that a reader has died of. `changed` is told of runs with new rows."""

    def __init__(
        self,
        readmodel: ReadModel,
        finder: Finder,
        readers: Readers,
        changed: Callable[[set[int]], None] = lambda runs: None,
        suspects: Iterable[str] = (),
    ) -> None:
        self._model, self._finder, self._readers = readmodel, finder, readers
        self._tables = Tables(readmodel.conn)
        self._streams = Streams(self._tables, readers, set(suspects))
        self._changed = changed
        self._stories = Stories(self._tables)
        self._hot: OrderedDict[Place, Run] = OrderedDict()
        self._ids: dict[Place, tuple[int, str]] = {}
        self._gone: set[Place] = set()
        self._rest: dict[Place, float] = {}
        self._recalled = False
        self.read = 0

    # --- what is to be done ---------------------------------------------------------------------

    def recall(self) -> list[Stirred]:
        """Take what is written for what is known; returns the runs whose rows are not settled."""
        unsettled = []
        self._hot.clear()
        self._ids.clear()
        for number, root, name, born, mark, settled in self._tables.runs():
            place = Place(root, name)
            self._ids[place] = number, born
            self._finder.read_sequence(place, mark)
            if not settled:
                unsettled.append(Stirred(place, frozenset()))
        for root, name, attempt, nonce, writer, mark in self._tables.marks():
            stream = StreamId(attempt, nonce, writer)
            self._finder.read_stream(Place(root, name), stream, mark)
        self._recalled = True
        return unsettled

    def gone(self, places: Iterable[Place]) -> list[Stirred]:
        """Runs that the read model knows, and that are not among these any more."""
        there = set(places)
        roots = {str(root) for root in self._finder.roots} - self._finder.unreadable
        return [
            Stirred(place, frozenset())
            for place in self._ids
            if place.root in roots and place not in there and place not in self._gone
        ]

    def changed_holders(self) -> list[Stirred]:
        """Runs whose rows say of their holder what is not so any more."""
        return [Stirred(place, frozenset()) for place in self._stories.changed_holders()]

    def living(self) -> list[Place]:
        """Runs that may be alive: unfinished, and their holder not known to be dead."""
        return self._stories.living()

    def follow(self, stirred: list[Stirred]) -> list[Stirred]:
        """Read what has stirred, in one transaction; returns what is left for the next one."""
        left: list[Stirred] = []
        seen: list[Callable[[], None]] = []
        touched: set[int] = set()
        read = 0
        if not self._recalled:
            stirred = [*self.recall(), *stirred]
        with self._all_or_nothing():
            for place, one in enumerate(stirred):
                if read >= SLICE or place >= MOST_RUNS:
                    left += stirred[place:]
                    break
                if time.monotonic() < self._rest.get(one.place, 0.0):
                    continue
                with self._apart(one.place, touched):
                    count, more = self._follow(one, seen, touched)
                    read += count
                    left += more
            self._settle_due(touched)
            self._cool(touched)
        for note in seen:
            note()
        self.read += read
        if touched:
            self._changed(touched)
        return left

    def settles_in(self) -> float | None:
        """Seconds until rows are due; None where all are up to date."""
        due = [run.due for run in self._hot.values() if run.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def settle(self, *, everything: bool = False) -> None:
        """Bring up the rows that are due, or all."""
        if not self._recalled:
            self.follow([])
        touched: set[int] = set()
        with self._all_or_nothing():
            self._settle_due(touched, everything=everything)
        if touched:
            self._changed(touched)

    def close(self) -> None:
        """Keep what is folded, so that the next follower need not fold again."""
        self.settle(everything=True)
        with self._all_or_nothing():
            for run in self._hot.values():
                self._store(run)
        self._hot.clear()
        self._readers.close_all()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            with self._model.transaction():
                yield
        except BaseException:
            self._recalled = False  # what is in memory is ahead of what is written
            self._hot.clear()
            raise

    @contextlib.contextmanager
    def _apart(self, place: Place, touched: set[int]) -> Iterator[None]:
        """One run: what nobody can tell of its journals is said in its row, and ends no other."""
        number = self._number(place)
        try:
            with self._model.part():
                yield
        except WalrecoverError:
            raise
        except _UNTELLABLE as error:
            self._hot.pop(place, None)
            self._rest[place] = time.monotonic() + REST_SECONDS
            problem = f"what its journals say cannot be told: {type(error).__name__}: {error}"
            self._tables.set_state(number, "damaged", problem)
            touched.add(number)

    # --- a run ----------------------------------------------------------------------------------

    def _follow(
        self, one: Stirred, seen: list[Callable[[], None]], touched: set[int]
    ) -> tuple[int, list[Stirred]]:
        run = self._load(one.place)
        try:
            there = run.dir.exists()
            streams = self._meant(run, one.streams)
        except OSError as error:
            self._trouble(run, "damaged", f"{error.strerror}: {error.filename}")
            touched.add(run.id)
            return 0, []
        if not there:
            self._trouble(run, "gone", f"{run.dir.path} is not there any more")
            seen.append(lambda: self._lose(run))
            touched.add(run.id)
            return 0, []
        if one.sequence:
            self._read_sequence(run, seen)
        read, left, tells = 0, [], False
        for key in streams:
            found = self._stream(run, key, seen)
            read += found.events
            tells = tells or found.tells
            if found.more:
                left.append(names_of(key))
        if read:
            touched.add(run.id)
        tells = tells or one.sequence or one.streams == frozenset()
        if tells or read:
            run.stirred(tells=tells)
        return read, [Stirred(one.place, frozenset(left), sequence=False)] if left else []

    @staticmethod
    def _meant(run: Run, names: frozenset[tuple[str, str]] | None) -> list[StreamId]:
        if names is None:
            found = {stream for stream, _ in find_streams(run.dir.journal)}
            return sorted(found | run.streams.keys())
        meant = []
        for attempt, writer in sorted(names):
            with contextlib.suppress(BadInput):
                meant.append(stream_at(run.dir.journal / attempt / writer))
        return meant

    def _load(self, place: Place) -> Run:
        if place in self._hot:
            self._hot.move_to_end(place)
            return self._hot[place]
        number, born = self._number(place), self._ids[place][1]
        run = Run(number, place, self._finder.run(place), born)
        for row in self._tables.streams(number):
            stream = Stream(row)
            run.streams[stream.key] = stream
            self._streams.fold_up(stream, run.dir.stream(*stream.key))
        run.told = self._tables.story(number)
        self._hot[place] = run
        self._gone.discard(place)
        self._read_sequence(run, [])
        return run

    def _number(self, place: Place) -> int:
        if place not in self._ids:
            self._ids[place] = self._tables.add_run(*place), ""
        return self._ids[place][0]

    def _cool(self, touched: set[int]) -> None:
        """Let go of the runs that stirred longest ago."""
        while len(self._hot) > MOST_RUNS:
            run = next(iter(self._hot.values()))
            with self._apart(run.place, touched):
                if run.due is not None:
                    self._stories.settle(run)
                self._store(run)
            self._hot.pop(run.place, None)

    def _store(self, run: Run) -> None:
        for stream in run.streams.values():
            self._streams.store(stream)

    def _stream(self, run: Run, key: StreamId, seen: list[Callable[[], None]]) -> Pass:
        stream = run.streams.get(key)
        if stream is None:
            number = self._tables.add_stream(run.id, *key)
            stream = Stream(StreamRow(number, *key, *START, *START, b"", "", "", ""))
            run.streams[key] = stream
        found = self._streams.follow(run.id, stream, run.dir.stream(*key))
        if stream.kind == "Gone" and run.is_foreign(key):
            self._streams.forget(stream)
            del run.streams[key]
            seen.append(lambda: self._finder.forget(run.place))
            return found._replace(more=False)
        if found.voided:
            run.told = self._tables.story(run.id)  # `advance` may have written more than was told
        seen.append(lambda: self._finder.read_stream(run.place, key, found.mark))
        return found

    def _lose(self, run: Run) -> None:
        self._finder.forget(run.place)
        self._stories.forget(run.place)
        for stream in run.streams:
            self._readers.close(run.dir.stream(*stream))
        self._hot.pop(run.place, None)
        self._gone.add(run.place)

    def _trouble(self, run: Run, state: str, problem: str) -> None:
        run.problem, run.due = problem, None
        self._tables.set_state(run.id, state, problem)

    def _read_sequence(self, run: Run, seen: list[Callable[[], None]]) -> None:
        if run.read_sequence(self._tables):
            mark = run.mark
            seen.append(lambda: self._finder.read_sequence(run.place, mark))
            self._ids[run.place] = run.id, run.born

    # --- stories --------------------------------------------------------------------------------

    def _settle_due(self, touched: set[int], *, everything: bool = False) -> None:
        now = time.monotonic()
        for run in list(self._hot.values()):
            if run.due is not None and (everything or run.due <= now):
                touched.add(run.id)
                with self._apart(run.place, touched):
                    self._stories.settle(run)
