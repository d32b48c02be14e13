"""The loop of `walrecover run`: enter an attempt, run the command, decide, start over.

Owns the order of these; the plan is `recovery`'s, the command `watching`'s, the cause `causes`',
the decision `policy`'s, what people send `stopping`'s.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing

import msgspec

from walrecover import failures, goodput, recovery
from walrecover.causes import Forced, classify
from walrecover.entries import AttemptEntry
from walrecover.errors import Fenced, RunBusy, WalrecoverError
from walrecover.events import RestartDecided, WorkerExited
from walrecover.hangs import Limits
from walrecover.lease import holding
from walrecover.policy import Decision, Policy, decide_restart
from walrecover.processes import become_subreaper, identity
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence as RunSequence
from walrecover.supervisor import handover
from walrecover.supervisor.child import Command
from walrecover.supervisor.evidence import Records, records_of
from walrecover.supervisor.hanging import Monitor
from walrecover.supervisor.history import History
from walrecover.supervisor.keeper import Keeper
from walrecover.supervisor.notes import Notes, say
from walrecover.supervisor.preemption import leave
from walrecover.supervisor.signals import Interrupted, Signals
from walrecover.supervisor.standby import Kind, Standbys
from walrecover.supervisor.stopping import Stopping
from walrecover.supervisor.succession import Succession
from walrecover.supervisor.watching import Outcome, Watch, ending_offers

GRACE_SECONDS = 60.0
"""From a stop signal to SIGKILL. Longer than the 30 s that torchrun itself gives its workers."""

SAID = {"restart": "restarting", "rewind": "rewinding", "stop": "ending"}

LOOK_SECONDS = 2.0
"""Between two looks for a successor, in a pause."""


def supervise(
    command: Sequence[str],
    run: RunDir,
    policy: Policy,
    *,
    every: str | None = None,
    memory_every: str | None = None,
    resume: str = "auto",
    environ: Mapping[str, str] | None = None,
    grace: float = GRACE_SECONDS,
    limits: Limits | None = None,
    standby: Kind = "imported",
    notice: int | None = None,
    on_preempt: str | None = None,
    adopt: Sequence[str] = (),
) -> int:
    """Run the command until it is done, asked to stop or given up; return the exit code.

    That is the command's own, 128+n where signal n ended it, 130 after a second Ctrl-C, 1 where
    somebody else has taken the run over, 75 after a preemption where `on_preempt` says "again".
    `notice`: a signal that announces one. Raises Unusable (126, 127) before anything is written,
    and what `recovery.begin_attempt` raises. For the main thread of a process without other
    children.
    """
    keeper = Keeper(adopt, run, forget=resume == "never")
    told = handover.of_run(run, every, memory_every) | handover.of_stops(grace, notice)
    told |= handover.of_policy(policy)
    found = Command.find(command, os.environ if environ is None else environ)
    found = found.told(told | keeper.told(found.environ))
    become_subreaper()
    with (
        Signals() as signals,
        closing(Standbys(standby, command, run, signals)) as standbys,
        ending_offers(run),
    ):
        try:
            supervision = _Supervision(
                found,
                run,
                policy,
                signals,
                grace,
                limits or Limits(),
                standbys,
                Stopping(signals, grace, notice),
                keeper,
            )
            exit_code = supervision.drive(resume)
            standbys.close()
            return leave(on_preempt, exit_code, supervision._stopping, found.environ)
        except Interrupted as interrupted:
            return 128 + interrupted.number


class _Supervision:
    """One `walrecover run`, over all its attempts."""

    def __init__(
        self,
        command: Command,
        run: RunDir,
        policy: Policy,
        signals: Signals,
        grace: float,
        limits: Limits,
        standbys: Standbys,
        stopping: Stopping,
        keeper: Keeper,
    ) -> None:
        self._command = command
        self._keeper = keeper
        self._run = run
        self._policy = policy
        self._signals = signals
        self._grace = grace
        self._limits = limits
        self._stopping = stopping
        self._holder = msgspec.structs.replace(identity(), supervisor=os.urandom(8).hex())
        self._succession = Succession(RunSequence(run.sequence), self._holder.supervisor)
        self._history = History(run)
        self._rewind = ""
        self._standbys = standbys
        self._watch = Watch(
            signals, self._stopping, self._succession, grace, standbys, run, policy.logs
        )

    def drive(self, resume: str) -> int:
        self._run.create()
        while True:
            try:
                with self._signals.interrupting():
                    begun = recovery.begin_attempt(
                        self._run,
                        self._holder,
                        resume=resume,
                        succeeding=self._history.entered,
                        rewind=self._rewind,
                    )
            except (Fenced, RunBusy) as error:
                if not self._history.entered:
                    raise
                say(f"not restarting: {error}")
                return 1
            say(begun.line)
            self._history.begin(begun)
            resume = "auto"
            exit_code = self._attempt(begun)
            if exit_code is not None:
                return exit_code

    def _attempt(self, begun: recovery.Begun) -> int | None:
        """One attempt and the pause after it; None where another one follows."""
        entry = begun.entry
        folder = self._run.meeting(entry.number, entry.nonce)
        with closing(Notes(self._run, begun)) as notes, holding(folder):
            failures.tell(folder, goodput.known(begun.state))
            self._keeper.begin(entry, self._signals)
            self._standbys.begin(entry)
            told = handover.of_attempt(entry, folder, self._command.environ)
            command = self._command.told({**self._history.environment, **told})
            monitor = Monitor(
                self._run,
                self._limits,
                begun.state,
                lambda: self._succession.at_work(entry),
                notes.append,
                self._stopping.hear,
            )
            outcome = self._watch.run(command, notes, monitor)
            self._keeper.settle(entry, self._signals, self._stopping, outcome.ending.code == 0)
            self._note_end(entry, outcome, notes)
            decision = self._note_decision(notes)
        if self._stopping.hurried:
            return 130
        if decision.action == "stop":
            return 1 if self._succession.successor() else outcome.ending.exit_code
        return self._pause(decision.delay)

    def _note_end(self, entry: AttemptEntry, outcome: Outcome, notes: Notes) -> None:
        """Say why it ended, and take it into the history on which is decided."""
        records = self._records(entry)
        found = outcome.before.look(
            outcome.ending,
            records,
            run=self._run,
            started=outcome.pid > 0,
            forced=outcome.forced or self._fenced(),
            asked=self._stopping.asked,
            peak=outcome.peak,
        )
        verdict = classify(found, self._policy.patterns)
        asked = self._stopping.asked is not None
        self._history.take(entry, outcome.ending, records, verdict, asked)
        if verdict.cause not in ("done", "stopped"):
            say(f"attempt {entry.number} ended: {verdict.cause}: {verdict.sentence}")
        notes.append(
            WorkerExited(
                at=time.time(),
                pid=outcome.pid,
                code=outcome.ending.code,
                signal=outcome.ending.signal,
                cause=verdict.cause,
                evidence=verdict.sentence,
                seconds=outcome.seconds,
                fingerprint=verdict.fingerprint,
                artefacts=outcome.forced.artefacts if outcome.forced else (),
                step=verdict.step,
                seen=outcome.seen,
            )
        )

    def _note_decision(self, notes: Notes) -> Decision:
        decision = self._decide()
        reason = decision.reason
        if decision.action != "stop":
            changes = self._history.follow(decision, self._command.environ)
            reason = f"{reason}; {changes}" if changes else reason
        self._rewind = self._history.ended[-1].cause if decision.action == "rewind" else ""
        notes.append(
            RestartDecided(
                at=time.time(),
                action=decision.action,
                delay=decision.delay,
                reason=reason,
                environment=self._history.environment,
            )
        )
        say(f"{SAID[decision.action]}: {reason}")
        return decision

    def _fenced(self) -> Forced | None:
        successor = self._succession.successor()
        return Forced("fenced", _taken_over(successor)) if successor else None

    def _records(self, entry: AttemptEntry) -> Records:
        """What the ranks journaled in this attempt, and in those that torchrun began after it."""
        try:
            return records_of(self._run, self._succession.own_since(entry))
        except (OSError, WalrecoverError) as error:
            say(f"how far attempt {entry.number} came cannot be told: {error}")
            return []

    def _decide(self) -> Decision:
        successor = self._succession.successor()
        if successor is not None:
            return Decision("stop", 0.0, _taken_over(successor))
        return decide_restart(time.monotonic(), self._history.ended, self._policy, random.random())

    def _pause(self, seconds: float) -> int | None:
        """Wait before the next attempt; an exit code where there must not be one."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            self._stopping.hear(min(left, LOOK_SECONDS))
            if self._stopping.asked is not None:
                return 128 + self._stopping.asked
            if successor := self._succession.successor():
                say(f"ending: {_taken_over(successor)}")
                return 1
            if left <= 0:
                return None


def _taken_over(successor: AttemptEntry) -> str:
    return f"attempt {successor.number} by {successor.holder} took the run over"
