"""What the saver does with a slot: write it and digest it beside, vote for it, let it go.

Owns the order of that. One slot at a time, the oldest first; commits are `commits`'.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from walrecover import events as ev
from walrecover import paced, snapshot
from walrecover.arena.layout import Header, Row, State
from walrecover.arena.slots import Job, Slot
from walrecover.commits import Attempt, Key, require_newest
from walrecover.errors import Corrupt, StorageFailed, WalrecoverError
from walrecover.files import sync_file
from walrecover.journal import Reader
from walrecover.manifest import by_object
from walrecover.paced import Breathe
from walrecover.references import References, base_of
from walrecover.rundir import RunDir
from walrecover.saver.digesting import Digesting, Lost
from walrecover.saver.messages import Abandoned, Report, Voted
from walrecover.saver.trainer import Trainer
from walrecover.sequence import Sequence
from walrecover.shards import TensorData, Writing
from walrecover.snapshot import Capture

POLL_SECONDS = 0.005


class Saving:
    """One rank's captures on their way to a vote."""

    def __init__(
        self,
        run: RunDir,
        attempt: Attempt,
        slots: tuple[Slot, ...],
        trainer: Trainer,
        breathe: Breathe,
        note: Callable[[ev.Event], object],
        tell: Callable[[Report], object],
    ) -> None:
        self._run, self._attempt, self._slots = run, attempt, slots
        self._trainer, self._breathe, self._note, self._tell = trainer, breathe, note, tell
        self._done = {slot.number: slot.let_go for slot in slots}
        self._last_vote = 0
        self._common: int | None = None
        self._references: References | None = None

    def pending(self) -> list[tuple[Slot, Header]]:
        """Captures that are to go to disk, oldest first. Once its process is gone, one is of those
        that were only kept in memory: the newest, and where that cannot be saved the one before; of
        several ranks the one they have in common (`heir_of`)."""
        lives = self._trainer.lives
        left = self._left(lives)
        newest = max((header.generation for _, header in left), default=0)
        return [
            (slot, header)
            for slot, header in left
            if header.wanted or (not lives and self._is_heir(header, newest))
        ]

    def _left(self, lives: bool) -> list[tuple[Slot, Header]]:
        """Captures that were not let go of, oldest first."""
        found = [(slot, slot.judge(lives=lives)) for slot in self._slots]
        left = [
            (slot, judged.header)
            for slot, judged in found
            if judged.state is State.COMPLETE
            and judged.header is not None
            and self._done[slot.number] != judged.header.generation
        ]
        return sorted(left, key=lambda one: one[1].generation)

    def _is_heir(self, header: Header, newest: int) -> bool:
        if self._attempt.world > 1:
            return header.step == self._common
        return header.generation == newest and newest > self._last_vote

    def voted(self) -> tuple[int, Header] | None:
        """The capture that was voted for last, and its slot, if it still lies there. Of several
        ranks that may be an older one: what they have in common comes behind what they have not."""
        for slot in self._slots:
            header = slot.judge(lives=False).header
            if header is not None and header.generation == self._last_vote:
                return slot.number, header
        return None

    def heir_of(self, step: int | None) -> None:
        """This is the step that all ranks have kept in memory."""
        self._common = step

    def heritage(self) -> list[int]:
        """The steps that were only kept in memory and can be saved, once the process is gone."""
        found = []
        for slot, header in self._left(lives=False):
            if header.wanted or not (self._trainer.is_trusted or slot.digests(header)):
                continue
            with contextlib.suppress(WalrecoverError, OSError):  # scribbled on, or no stream
                job, _ = slot.job(header)
                if Stream.holds(self._run, self._attempt, job):
                    found.append(header.step)
        return found

    def save_next(self) -> tuple[Key, bool] | None:
        """Vote for the oldest capture, or abandon it. Returns its key and whether it is the end,
        where there is a vote now. Raises Fenced."""
        waiting = self.pending()
        if not waiting:
            return None
        slot, header = waiting[0]
        key = Key(header.step, header.end)
        try:
            require_newest(self._run, self._attempt)
            if self._has_voted(slot, header):
                self._last_vote = header.generation
                return key, header.end
            job = self._vote(slot, header)
        except (Lost, Corrupt, StorageFailed, OSError) as error:
            self._note(ev.SnapshotAbandoned(step=key.step, end=key.end, reason=str(error)))
            self._tell(Abandoned(key.step, key.end, str(error)))
            return None
        finally:
            self._let_go(slot, header)
        self._last_vote = header.generation
        return key, job.finished

    def _has_voted(self, slot: Slot, header: Header) -> bool:
        """An earlier saver did, and died before it let the slot go."""
        rank = slot.job(header)[0].rank
        number, nonce, _ = self._attempt
        return Key(header.step, header.end) in snapshot.voted(self._run, number, nonce, rank)

    def _let_go(self, slot: Slot, header: Header) -> None:
        self._done[slot.number] = header.generation
        slot.release(header)

    def _vote(self, slot: Slot, header: Header) -> Job:
        began = time.monotonic()
        job, rows = slot.job(header)
        digesting = Digesting(slot, header, rows, self._trainer, self._breathe)
        base = slot.data_address(header)
        tensors = {
            row.name: TensorData(row.dtype, row.shape, base + row.offset, row.nbytes, None)
            for row in rows
        }
        capture = _capture(job, rows, tensors)
        stream = Stream(self._run, self._attempt, job, digesting.settle, self._trainer)
        writing = Writing(digesting.named, lambda path, some: paced.put(path, some, self._breathe))
        try:
            references = self._known_references(job)
            part = snapshot.vote(self._run, capture, stream, writing, references.offers())
            references.cast(part)
        finally:
            stream.close()
        seconds = time.monotonic() - began
        self._note(
            ev.ShardsWritten(
                step=job.step,
                end=job.end,
                files=tuple(
                    ev.WrittenFile(name, at.bytes, at.digest)
                    for name, at in part.files.items()
                    if name.startswith(f"{capture.name}/")
                ),
                seconds=seconds,
            )
        )
        known = {name: at.digest for name, at in part.tensors.items()}
        state = by_object(msgspec.msgpack.decode(job.tree)["objects"], known)
        self._tell(Voted(job.step, job.end, part.lsn, seconds, state))
        return job

    def _known_references(self, job: Job) -> References:
        """With what was committed since the last vote."""
        entries = Sequence(self._run.sequence).read()
        if self._references is None:
            base = base_of(self._run, entries, job.nonce, job.rank, job.world)
            self._references = References(self._run, job.attempt, job.nonce, base)
        self._references.look(entries)
        return self._references


class Stream:
    """The rank's stream as a vote needs it (rule 6). Its writer is another process, or was."""

    def __init__(
        self,
        run: RunDir,
        attempt: Attempt,
        job: Job,
        settle: Callable[[], None],
        trainer: Trainer,
    ) -> None:
        self._path = run.stream(attempt.number, attempt.nonce, job.writer)
        self._job, self._settle, self._trainer = job, settle, trainer
        self._reader: Reader | None = None

    @staticmethod
    def holds(run: RunDir, attempt: Attempt, job: Job) -> bool:
        """Whether the events through the captured step have outlived their process."""
        with Reader(run.stream(attempt.number, attempt.nonce, job.writer)) as reader:
            return reader.head().lsn >= job.lsn

    def sync(self) -> tuple[int, bytes]:
        """Wait until the events through the captured step are committed, and make them durable.
        Raises StorageFailed where they were lost with their process, Lost."""
        self._settle()
        self._reader = reader = Reader(self._path)
        while True:
            lives = self._trainer.lives  # asked first: then what it committed is all there is
            if reader.head().lsn >= self._job.lsn:
                break
            if not lives:
                raise Lost("the last events of its process were lost with it")
            time.sleep(POLL_SECONDS)
        sync_file(_data_of(self._path))
        at = reader.cursor_at(self._job.lsn)
        return at.lsn, at.chain

    def envelopes(self, after: int, upto: int) -> list[bytes]:
        assert self._reader is not None
        return self._reader.envelopes(after, upto)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _data_of(stream: Path) -> Path:
    return stream / "data.mdb"


def _capture(job: Job, rows: tuple[Row, ...], tensors: Mapping[str, TensorData]) -> Capture:
    return Capture(
        run=job.run,
        step=job.step,
        end=job.end,
        attempt=job.attempt,
        nonce=job.nonce,
        rank=job.rank,
        world=job.world,
        base=job.base,
        position=job.position,
        tensors=tensors,
        shared=frozenset(row.name for row in rows if row.shared),
        tree=job.tree,
        writer=job.writer,
        events_after=job.events_after,
    )
