"""What a supervisor knows of the attempts behind it: how each ended, how far the run has come, and
what the next one finds changed.

Owns taking ends into this history, and inheriting it from a supervisor that did not live to decide;
must not decide anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from walrecover import beats
from walrecover.causes import Verdict, unseen
from walrecover.entries import AttemptEntry, Holder, attempts
from walrecover.events import WorkerExited
from walrecover.policy import Decision, Ended, change
from walrecover.processes import identity
from walrecover.recovery import Begun
from walrecover.rundir import RunDir
from walrecover.state import RunState, StreamRecord
from walrecover.supervisor.child import Ending
from walrecover.supervisor.evidence import Records
from walrecover.supervisor.notes import WRITER


class History:
    """`ended`: oldest first. `environment`: what policies have changed so far."""

    def __init__(self, run: RunDir) -> None:
        self.ended: list[Ended] = []
        self.environment: dict[str, str] = {}
        self._run = run
        self._furthest = 0
        self._changed = False
        self._rewinds = 0
        self._entered = False

    @property
    def entered(self) -> bool:
        """Whether this supervisor has entered an attempt."""
        return self._entered

    def begin(self, begun: Begun) -> None:
        """An attempt was entered; before the first one, what came before is inherited."""
        plan = begun.entry.plan
        if not self._entered and not plan.fresh:
            self._inherit(begun.state)
        self._entered = True
        self._rewinds += plan.rewind is not None
        self._furthest = max(self._furthest, plan.base.step if plan.base else 0)

    def take(
        self, entry: AttemptEntry, ending: Ending, records: Records, verdict: Verdict, asked: bool
    ) -> None:
        """Only steps that no attempt before it had completed are progress."""
        restored, furthest = False, self._furthest
        for own, found in records:
            for record in found.values():
                restored = restored or record.resumed is not None
                furthest = max(furthest, record.last_step)
            # The journal may lack the last steps of a killed process; its beat does not.
            furthest = max(furthest, beats.furthest(self._run.meeting(own.number, own.nonce)))
        self._append(
            Ended(
                attempt=entry.number,
                code=ending.code,
                signal=ending.signal,
                restored=restored,
                steps=furthest - self._furthest,
                asked_to_stop=asked,
                cause=verdict.cause,
                fingerprint=verdict.fingerprint,
                error=verdict.error,
                kinds=verdict.kinds,
                at=verdict.step,
                changed=self._changed,
                rewinds=self._rewinds,
            )
        )

    def follow(self, decision: Decision, environ: Mapping[str, str]) -> str:
        """Take over what a decision changes for the next attempt; what to say of that."""
        changed, said = change({**environ, **self.environment}, decision.environment)
        self.environment |= changed
        self._changed = bool(changed) or decision.action == "rewind"
        return said

    def _append(self, ended: Ended) -> None:
        self.ended.append(ended)
        self._furthest += ended.steps

    def _forget(self) -> None:
        self.ended, self.environment, self._changed = [], {}, False

    def _inherit(self, state: RunState) -> None:
        """From attempts whose supervisor did not decide to stop: one that is killed again and again
        with its host must not begin with a full budget each time. Whoever starts a run again
        after a decision to stop, or by hand, does so on purpose, and with a clean sheet.
        """
        here, supervisor = identity(), ""
        for entry in attempts(state.entries):
            records = state.of_attempt(entry.number, entry.nonce)
            notes = records.pop(WRITER, None)
            ranks = list(records.values())
            if entry.plan.fresh:
                self._forget()
                self._furthest = self._rewinds = 0
            self._rewinds += entry.plan.rewind is not None
            if notes is None and entry.holder.supervisor == supervisor != "":
                self._fold_in(ranks)  # torchrun's own restart, part of the attempt before
                continue
            supervisor = entry.holder.supervisor
            self._append(self._past(entry, notes or StreamRecord(), ranks, here))
            self._decided(notes)

    def _past(
        self, entry: AttemptEntry, notes: StreamRecord, ranks: list[StreamRecord], here: Holder
    ) -> Ended:
        last = max((record.last_step for record in ranks), default=0)
        exited = notes.exited[-1] if notes.exited else None
        if exited is None:
            verdict = unseen(entry.holder, here)
            exited = WorkerExited(
                pid=0, cause=verdict.cause, fingerprint=verdict.fingerprint, step=last
            )
        return Ended(
            attempt=entry.number,
            code=exited.code,
            signal=exited.signal,
            restored=any(record.resumed for record in ranks),
            steps=max(0, last - self._furthest),
            cause=exited.cause,
            fingerprint=exited.fingerprint,
            at=exited.step,
            changed=self._changed,
            rewinds=self._rewinds,
        )

    def _decided(self, notes: StreamRecord | None) -> None:
        if notes is None or any(decided.action == "stop" for decided in notes.decided):
            self._forget()
        elif notes.decided:
            decided = notes.decided[-1]
            self._changed = decided.action == "rewind" or decided.environment != self.environment
            self.environment = dict(decided.environment)

    def _fold_in(self, ranks: list[StreamRecord]) -> None:
        more = max((record.last_step for record in ranks), default=0) - self._furthest
        if self.ended and more > 0:
            before = self.ended[-1]
            self.ended[-1] = msgspec.structs.replace(before, steps=before.steps + more)
            self._furthest += more
