"""The run that a training loop talks to: steps, boundaries, snapshots, the end.

Owns what happens at a boundary and in which order. Loops are `loops`', agreement between ranks
`meeting`'s, writing `saving`'s, the objects' state the torch adapter's.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from walrecover import events as ev
from walrecover import failures, lineage
from walrecover.beats import Beat
from walrecover.commits import Key
from walrecover.entries import AttemptEntry
from walrecover.errors import Stopped, StorageFailed, WalrecoverError
from walrecover.journal import Journal
from walrecover.lease import Lease
from walrecover.pace import Pace, is_due
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.session.agreeing import MEASURED_STEPS, Agreement
from walrecover.session.alarm import Alarm
from walrecover.session.background import Background
from walrecover.session.exceptions import describe
from walrecover.session.iterating import Loop
from walrecover.session.leaving import Leaving
from walrecover.session.loops import Loops
from walrecover.session.meeting import Meeting
from walrecover.session.moment import Captures, living
from walrecover.session.pacing import Pacer
from walrecover.session.position import Position
from walrecover.session.proving import Prover, prove
from walrecover.session.recording import Recorder
from walrecover.session.restoring import Restored
from walrecover.session.salvage import Outcome, Salvage
from walrecover.session.saving import Saver
from walrecover.session.settings import Settings
from walrecover.session.stopping import Signals
from walrecover.torch_adapter import rng, scheduling
from walrecover.torch_adapter.objects import Attached
from walrecover.torch_adapter.ranks import World

LAST_WORD_SECONDS = 2.0  # for the exception to be durable
PATIENCE_SECONDS = 5.0  # with the other ranks' votes for the end, once this one is to stop


class Run:
    """A run of training, from `walrecover.attach`. Not a context manager: nothing is swallowed."""

    def __init__(
        self,
        *,
        directory: RunDir,
        settings: Settings,
        entry: AttemptEntry,
        ranks: World,
        attached: Attached,
        journal: Journal,
        meeting: Meeting,
        beat: Beat,
        restored: Restored | None,
        finished: bool,
        strict: bool,
        code: ev.Code,
        prover: Prover,
    ) -> None:
        self._directory, self._settings, self._entry = directory, settings, entry
        self._ranks, self._attached, self._journal = ranks, attached, journal
        self._meeting, self._beat, self._strict = meeting, beat, strict
        self._captures = Captures(directory.name, entry, ranks, msgspec.to_builtins(code))
        self._restored, self._prover = restored, prover
        self._step = restored.step if restored else 0
        self._boundary_at = self._step
        self._finished_at = self._step if finished else None
        self._loops = Loops(self)
        self._loops.read_as(ranks.rank, settings.keyed, entry.plan.skips)
        if restored:
            self._loops.begin_resume(restored.position, dealt=restored.deal is not None)
            if not restored.position.places:
                self._restored = None  # no loop to come back to: `attach` restored all there is
                prove(prover, attached, restored)
        else:
            prover.begin()
        teaches = settings.supervisor is not None and ranks.rank == 0
        self._recorder = Recorder(
            journal, self._loops, attached, prover, teaches=teaches, alarm=Alarm(settings.rewinds)
        )
        base = entry.plan.base
        watched = settings.supervisor.pid if settings.supervisor else 0
        self._saver: Saver = Background(
            slots=2 if settings.memory is None else 3,
            supervisor=watched,
            arrived=self._recorder.record_late,
            run=directory,
            journal=journal,
            attempt=entry.number,
            nonce=entry.nonce,
            rank=ranks.rank,
            world=ranks.size,
            verified=frozenset({base.manifest} if base else ()),
            retention=settings.keep,
            say=self._say,
            base=restored.part if restored else None,
            noted=self._noted,
        )
        self._signals = Signals(settings.grace, settings.notice)
        self._pacer = Pacer(settings.every, failures.told(meeting.folder), journal)
        self._agreement = Agreement(meeting, self._signals, ranks, journal, self._pacer, self._say)
        self._lease = None if settings.supervisor or ranks.rank else Lease(meeting.folder)
        self._wanted = self._prepared = False
        self._last_key = Key(base.step, base.end) if base else None
        self._clock = time.monotonic()
        self._times: deque[float] = deque(maxlen=MEASURED_STEPS * 7)
        self._closed = self._left = False
        if settings.every.steps is not None:
            self._meeting.paces.append(Pace(0, settings.every.steps))
        self._meeting.promise(self._step + 1)
        self._beat.say("first", self._step)
        self._salvage = Salvage(
            attached,
            self._loops,
            self._saver,
            self._captures,
            base.step if base else 0,
            self._say,
        )
        self._leaving = Leaving(self)

    # -- public ---------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The run's name."""
        return self._directory.name

    @property
    def global_step(self) -> int:
        """Completed steps of the run, over all its attempts."""
        return self._step

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop; it does so at a boundary that all ranks agree on."""
        return self._signals.received is not None or self._meeting.stop is not None

    @property
    def superseded_from(self) -> int | None:
        """The first step that an attempt before this one may have made and logged already: cut a
        logger's curves there, before the first step. None in a run's first attempt."""
        found = Sequence(self._directory.sequence).read()
        return lineage.superseded_from(found, self._entry)

    def loop(self, *iterables: Iterable[Any]) -> Loop:
        """Iterate resumably; several iterables act as `zip`. May be nested to any depth.

        A position is kept by index (range, sequence, DataLoader) or by the iterable's own
        `state_dict`; other iterables are read again from their beginning, and it is said.
        It must be the outermost reader: `tqdm(run.loop(x))`, not `run.loop` under a prefetcher.
        """
        if not iterables:
            raise TypeError("run.loop() needs something to iterate over")
        return Loop(self._loops, iterables)

    def enumerate(self, iterable: Iterable[Any]) -> Loop:
        """`run.loop` that gives (index, item), the index counting from the real beginning."""
        return Loop(self._loops, (iterable,), counted=True)

    def step(self, **values: Any) -> None:
        """One optimizer step is done, and nothing half-done is left.

        Call it once for each step of the optimizers together, not for a micro-batch; a step that
        GradScaler skips counts. Scalars (numbers or one-element tensors) are journaled; a tensor
        on a device is copied without waiting for it and journaled later.
        Without any active `run.loop` this is the boundary itself, and must come last.
        """
        waiting = self._loops.step_waiting
        if not self._loops.step_made():
            return
        if waiting:
            self._record()  # a step before this one, whose boundary has not come
        self._finished_at = None
        self._step += 1
        self._recorder.take(self._step, values)
        if self._loops.step_is_boundary():
            self._loops.step_waiting = False
            self.boundary()

    def snapshot(self) -> None:
        """Snapshot at the next boundary. Call it on every rank at the same step."""
        self._wanted = True

    def finish(self) -> None:
        """Commit the end of the run. Needed only after `break`, or with a loop of one's own."""
        if self._finished_at == self._step and self._finished_at is not None:
            return
        if self._loops.step_waiting:
            self._loops.step_waiting = False
            self._record()
        self._finish(self._loops.end_position())

    # -- what the loops call --------------------------------------------------------------------

    def restore_again(self) -> None:
        """The innermost resumed loop stands at its place: every object again, the RNG last."""
        restored = self._restored
        assert restored is not None
        if not self._loops.is_behind():
            self._restored = None
        self._attached.restore(restored.stored, self._strict)
        scheduling.check(self._attached, restored.stored, self._strict)
        while self._loops.opaque:
            self._say(self._loops.opaque.pop(0))
        rng.restore(restored.rng)
        if self._restored is None:
            prove(self._prover, self._attached, restored)
        self._journal.append(ev.PlaceReached(at=time.time(), step=restored.step))

    def pausing(self) -> None:
        """A loop in which steps were made has ended: what comes before the next step is none."""
        if self._finished_at != self._step:
            self._beat.say("between")

    def loops_ended(self) -> None:
        """The outermost loop has no more items: the run came to its end."""
        if self._finished_at != self._step:
            self._finish(self._loops.position())

    def boundary(self) -> dict[str, Any] | None:
        """A step is complete, its item's successor not yet fetched (DESIGN: the boundary).

        Returns the random state at its end, or None where that was not captured: a snapshot calls
        the objects' own code.
        """
        captured: dict[str, Any] | None = self._record()
        if self._prover.active:
            self._saver.note_commits()  # a vote tells the digests of its state
        if self._saver.failed:
            raise self._saver.failed
        if self._prover.refusal:
            self._salvage.forget()  # what has diverged is no state to come back to
            self._prover.check()
        step = self._step
        self._agreement.reach(step, self._times)
        stop = self._meeting.stop
        stopping = stop is not None and step >= stop.step
        key = Key(step, False)
        due = self._is_due(step)
        left = self._signals.seconds_left() if stopping else None
        late = self._saver.too_late(left)
        if late:
            self._note(self._salvage.lost(step, late, left))
        elif (self._wanted or stopping or due) and key != self._last_key:
            self._recorder.await_heard()
            self._wanted = False
            captured = None
            self._save(key, self._loops.position(), finished=False)
        if stopping:
            self._stop(key)
        if not self._prepared:
            captured = None
            self._prepare(key)
        memory = self._settings.memory  # how often a state is kept there that does not go to disk
        if key != self._last_key and memory and step % memory == 0 and self._hold(key):
            captured = None
            self._salvage.forget()
        elif key == self._last_key:
            self._salvage.forget()
        else:
            captured = self._salvage.keep(step, self._times[-1], captured or rng.capture())
        if self._ranks.size > 1:
            self._meeting.promise(step + 1)
        return captured

    # -- the boundary's parts -------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        """Whether one of the steps since the last boundary is to be captured."""
        last, self._boundary_at = self._boundary_at, step
        paces = self._meeting.paces
        if last + 1 == step:  # nearly always
            return is_due(step, paces)
        return any(is_due(n, paces) for n in range(last + 1, step + 1))

    def _prepare(self, key: Key) -> None:
        """The first step is made: the optimizer's state is there, so its size is known."""
        self._prepared = True
        began = time.monotonic()
        moment = living(self._attached, self._loops.position())
        self._saver.prepare(self._captures.of(key, moment, self._saver.committed_lsn))
        self._clock = time.monotonic()
        self._pacer.stood_still(key, self._clock - began, held=True)

    def _hold(self, key: Key) -> bool:
        began = time.monotonic()
        moment = living(self._attached, self._loops.position())
        held = self._saver.hold(self._captures.of(key, moment, self._saver.committed_lsn))
        self._clock = time.monotonic()
        self._pacer.stood_still(key, self._clock - began, held=True)
        return held

    def _record(self) -> dict[str, Any]:
        """Journal the step. Returns the random state behind it."""
        now = time.monotonic()
        self._times.append(now - self._clock)
        self._clock = now
        captured = self._recorder.record(self._step)
        self._beat.say("training", self._step)
        return captured

    def _save(self, key: Key, position: Position, *, finished: bool) -> bool:
        self._beat.say("snapshot", key.step)
        began = time.monotonic()
        self._saver.note_commits()
        moment = living(self._attached, position)
        capture = self._captures.of(key, moment, self._saver.committed_lsn)
        if self._prover.active:
            self._prover.expects(key.step)
        saved = self._saver.save(capture, finished=finished)
        if saved:
            self._last_key = key
        else:
            self._noted(key.step, {})
        self._clock = time.monotonic()
        self._pacer.stood_still(key, self._clock - began)
        self._beat.say("training", key.step)
        if self._saver.failed:
            raise self._saver.failed
        return saved

    def _noted(self, step: int, state: dict[str, bytes]) -> None:
        if self._prover.active:
            self._prover.noted("state", step, state)

    def _stop(self, key: Key) -> None:
        """Leave at the agreed boundary, once the snapshot is durable."""
        assert self._meeting.stop is not None
        number, began = self._meeting.stop.value, time.monotonic()
        durable = key == self._last_key and self._saver.wait(
            key, lambda: self._signals.seconds_left() == 0
        )
        if self._saver.failed:
            raise self._saver.failed
        self._pacer.stood_still(key, time.monotonic() - began, commit=True)
        self._leave(number, saved=durable)

    def _leave(self, number: int, *, saved: bool) -> None:
        kept = f"step {self._step} is saved"
        if not saved:
            kept = "the last committed snapshot stands"
            self._saver.rescue()  # of the others' captures, too, which have died or are late
        self._journal.append(ev.RunStopped(at=time.time(), step=self._step, signal=number))
        self._say(f"stopped by {signal.Signals(number).name}; {kept}, the same command resumes")
        self._close()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(128 + number)

    def _finish(self, position: Position) -> None:
        self._beat.say("snapshot", self._step)
        self._recorder.record_arrived(wait=True)
        key = Key(self._step, True)
        if self._last_key == key:
            self._finished_at = self._step
            return
        saved = self._save(key, position, finished=True)
        self._beat.say("snapshot")
        began = time.monotonic()
        patient_until = began + PATIENCE_SECONDS
        durable = saved and self._saver.wait(
            key, lambda: self._signals.received is not None and time.monotonic() > patient_until
        )
        if self._saver.failed:
            raise self._saver.failed
        if not durable and self._signals.received is not None:
            self._leave(self._signals.received, saved=False)
        if not durable:
            raise StorageFailed(
                f"the end of run {self.name} (step {self._step}) could not be committed; "
                f"run the same command again to finish it"
            )
        if self._ranks.rank == 0:
            self._saver.drain()
        self._pacer.stood_still(key, time.monotonic() - began, commit=True)
        self._journal.append(ev.RunFinished(at=time.time(), step=self._step))
        self._journal.sync()
        self._prover.close()
        self._finished_at = self._step
        self._beat.say("ended", self._step)

    def _say(self, text: str) -> None:
        if self._ranks.rank == 0:
            print(f"walrecover: {text}", file=sys.stderr, flush=True)

    def _tell(self, text: str) -> None:
        """What a rank says of itself."""
        rank = f"rank {self._ranks.rank}: " if self._ranks.size > 1 else ""
        print(f"walrecover: {rank}{text}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        """End this attempt in this process: nothing is written after it."""
        if self._closed:
            return
        self._closed = True
        if self._loops.step_waiting and not self._saver.failed:
            with contextlib.suppress(StorageFailed):  # said below
                self._record()
        self._leaving.close()
        self._salvage.close()
        self._signals.close()
        self._saver.close(fails=self._left)
        if self._lease:
            self._lease.release()
        self._prover.close()
        try:
            self._journal.close()
        except StorageFailed as error:
            self._say(str(error))
        self._beat.say("ended")

    # -- the way out ----------------------------------------------------------------------------

    def raised(self, error: BaseException) -> None:
        """An exception ends the script: the journal has it before anybody prints it, also where
        the disk is slow or refuses."""
        if self._closed:
            return
        with contextlib.suppress(StorageFailed, OSError):
            self._journal.append(describe(error, self._step))
            self._journal.sync(timeout=LAST_WORD_SECONDS)

    def trains_in(self, thread: int | None) -> bool:
        return thread == self._loops.thread

    def left(self) -> None:
        """The script is over: save the last completed step, if its state is still whole."""
        if self._closed or self._left or self._finished_at == self._step:
            return
        self._left = True
        self._beat.say("snapshot")
        outcome = self._salvage.save(self._step, self._last_key, self._signals.seconds_left())
        if outcome is None:
            return
        if outcome.saved:
            self._last_key = Key(outcome.step, False)
        self._note(outcome)

    def _note(self, outcome: Outcome) -> None:
        self._tell(str(outcome))
        with contextlib.suppress(StorageFailed, OSError):
            self._journal.append(ev.SalvageTried(at=time.time(), **outcome._asdict()))
            self._journal.sync(timeout=LAST_WORD_SECONDS)

    def exits(self) -> None:
        for part in (self.left, self._close):
            try:
                part()
            except (WalrecoverError, OSError) as error:
                self._say(str(error))
