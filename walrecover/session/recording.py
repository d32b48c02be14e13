"""What a completed step leaves in the journal.

Owns which facts of a step are taken, and where: on the training thread only references and cheap
copies, everything that can wait in the journal's thread, which gets the events in order. When a
step is complete is `run`'s, the order in the stream the journal's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from walrecover import events as ev
from walrecover.journal import Journal
from walrecover.session import imports
from walrecover.session.alarm import Alarm
from walrecover.session.consuming import Share, shares
from walrecover.session.loops import Loops
from walrecover.session.proving import Prover
from walrecover.torch_adapter import rng, scalars
from walrecover.torch_adapter.objects import Attached
from walrecover.twins import NORM


class Recorder:
    """Journals the steps of one attempt of one rank. `teaches`: a standby learns from its first
    step what to import. `alarm` hears every loss."""

    def __init__(
        self,
        journal: Journal,
        loops: Loops,
        attached: Attached,
        prover: Prover,
        *,
        teaches: bool,
        alarm: Alarm,
    ) -> None:
        self._journal, self._loops, self._attached = journal, loops, attached
        self._prover, self._teaches, self._alarm = prover, teaches, alarm
        self._batch: bytes | None = None
        self._scalars: dict[str, Any] = {}
        self._late = scalars.Late()
        self._late_lock = threading.Lock()
        self._digests: dict[str, bytes] = {}  # the journal's thread's

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """What `run.step` was given: numbers now, tensors on a device once they have arrived. And
        what the step was given: the digest of its batch."""
        loop = self._loops.stepped_in
        self._batch = None if loop is None else loop.batch.close()
        self._loops.consuming.step = step
        for name, value in values.items():
            number = scalars.number(value)
            if number is not None:
                self._scalars[name] = number
            else:
                with self._late_lock:
                    self._late.start(step, name, value)

    def record(self, step: int) -> dict[str, Any]:
        """Journal the step. Returns the random state behind it."""
        captured = rng.capture()
        if self._loops.consuming.notes:
            self._record_notes()
        self._journal.append(
            partial(
                self._completed,
                time.time(),
                step,
                self._loops.indices(),
                self._attached.learning_rates(),
                self._scalars,
                self._batch,
                captured,
                self._loops.consuming.taken(),
            )
        )
        self._scalars, self._batch = {}, None
        if self._teaches:
            self._teaches = False
            self._journal.append(imports.imported())
        if self._late.moving:
            self.record_arrived()
        self._alarm.check()
        return captured

    def record_arrived(self, *, wait: bool = False) -> None:
        """Journal the scalars of earlier steps that have come from their device. `wait`: all."""
        self.record_late(wait=wait)
        self._record_notes()
        if wait:
            self._alarm.await_heard(self._journal)

    def record_late(self, *, wait: bool = False) -> bool:
        """The scalars alone, from any thread; whether there were any."""
        if not wait and not self._late.moving:
            return False
        with self._late_lock:  # who waits for all has them journaled, by whatever thread
            found = self._late.arrived(wait=wait)
            for step, values in found:
                self._journal.append(partial(self._arrived, time.time(), step, values))
                if self._prover.active:
                    self._prover.noted("scalars", step, values)
        return bool(found)

    def await_heard(self) -> None:
        """Before a snapshot, where the policy goes back from bad losses: the alarm has heard them
        all, those on a device too. Raises BadLoss, StorageFailed."""
        if self._alarm.is_armed:
            self.record_late(wait=True)
            self._alarm.await_heard(self._journal)

    def _arrived(self, at: float, step: int, values: dict[str, float]) -> ev.ScalarsArrived:
        """In the journal's thread."""
        self._alarm.take(step, values)
        return ev.ScalarsArrived(at=at, step=step, scalars=values)

    def _record_notes(self) -> None:
        """Journal which readers were opened, and which passes are over."""
        notes = self._loops.consuming.notes
        while notes:
            self._journal.append(notes.pop(0))

    def _completed(
        self,
        at: float,
        step: int,
        indices: tuple[int, ...],
        lr: tuple[float, ...],
        values: dict[str, float],
        batch: bytes | None,
        captured: dict[str, Any],
        taken: Sequence[Share],
    ) -> ev.StepCompleted:
        """In the journal's thread, step after step: what the loop need not wait for."""
        self._alarm.take(step, values)
        digests = rng.digests(captured)
        moved = {n: d for n, d in digests.items() if self._digests.get(n) != d}
        self._digests = digests
        norm = values.pop(NORM, None)
        event = ev.StepCompleted(
            at=at,
            step=step,
            epoch=max(0, indices[0] - 1) if len(indices) > 1 else 0,
            position=indices,
            lr=lr,
            scalars=values,
            rng=moved,
            consumed=shares(taken),
            batch=batch,
            grad_norm=norm,
        )
        if self._prover.active:
            self._prover.completed(event)
        return event
