"""The loop of `walrecover run`: enter an attempt, start the command, wait, decide, start over.

Owns the order of these; the plan is `recovery`'s, the decision `policy`'s, what people send
`stopping`'s. Must not touch the command's output: nothing is buffered here.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing

import msgspec

from walrecover import beats, recovery
from walrecover.entries import AttemptEntry
from walrecover.errors import Fenced, RunBusy, WalrecoverError
from walrecover.events import RestartDecided, WorkerExited, WorkerStarted
from walrecover.lease import holding
from walrecover.policy import Decision, Ended, Policy, decide_restart
from walrecover.processes import become_subreaper, identity, kill_tree, reap
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence as RunSequence
from walrecover.supervisor import handover
from walrecover.supervisor.child import Command, Ending, Unusable, start
from walrecover.supervisor.notes import Notes, say
from walrecover.supervisor.signals import Interrupted, Signals
from walrecover.supervisor.stopping import Stopping
from walrecover.supervisor.succession import Succession

GRACE_SECONDS = 60.0
"""From a stop signal to SIGKILL. Longer than the 30 s that torchrun itself gives its workers."""

SWEEP_SECONDS = 5.0
"""The same for what an attempt leaves behind that nobody asked to stop."""

LOOK_SECONDS = 2.0
"""Between two looks for a successor."""


def supervise(
    command: Sequence[str],
    run: RunDir,
    policy: Policy,
    *,
    every: str | None = None,
    resume: str = "auto",
    environ: Mapping[str, str] | None = None,
    grace: float = GRACE_SECONDS,
) -> int:
    """Run the command until it is done, asked to stop or given up; return the exit code.

    That is the command's own, 128+n where signal n ended it, 130 after a second Ctrl-C, 1 where
    somebody else has taken the run over. Raises Unusable (126, 127) before anything is written,
    and what `recovery.begin_attempt` raises. For the main thread of a process without other
    children.
    """
    told = handover.of_run(run, every)
    found = Command.find(command, os.environ if environ is None else environ).told(told)
    become_subreaper()
    with Signals() as signals:
        try:
            return _Supervision(found, run, policy, signals, grace).drive(resume)
        except Interrupted as interrupted:
            return 128 + interrupted.number


class _Supervision:
    """One `walrecover run`, over all its attempts."""

    def __init__(
        self, command: Command, run: RunDir, policy: Policy, signals: Signals, grace: float
    ) -> None:
        self._command = command
        self._run = run
        self._policy = policy
        self._signals = signals
        self._grace = grace
        self._stopping = Stopping(signals, grace)
        self._holder = msgspec.structs.replace(identity(), supervisor=os.urandom(8).hex())
        self._succession = Succession(RunSequence(run.sequence), self._holder.supervisor)
        self._history: list[Ended] = []
        self._furthest = 0
        self._furthest = 0

    def drive(self, resume: str) -> int:
        self._run.create()
        while True:
            try:
                with self._signals.interrupting():
                    begun = recovery.begin_attempt(
                        self._run, self._holder, resume=resume, succeeding=bool(self._history)
                    )
            except (Fenced, RunBusy) as error:
                if not self._history:
                    raise
                say(f"not restarting: {error}")
                return 1
            say(begun.line)
            base = begun.entry.plan.base
            self._furthest = max(self._furthest, base.step if base else 0)
            resume = "auto"
            exit_code = self._attempt(begun)
            if exit_code is not None:
                return exit_code

    def _attempt(self, begun: recovery.Begun) -> int | None:
        """One attempt and the pause after it; None where another one follows."""
        entry = begun.entry
        folder = self._run.meeting(entry.number, entry.nonce)
        with closing(Notes(self._run, begun)) as notes, holding(folder):
            ending = self._run_command(begun.entry, notes)
            self._history.append(self._measure(begun.entry, ending))
            decision = self._decide()
            notes.append(
                RestartDecided(
                    at=time.time(),
                    action=decision.action,
                    delay=decision.delay,
                    reason=decision.reason,
                )
            )
        restarts = decision.action == "restart"
        say(f"{'restarting' if restarts else 'ending'}: {decision.reason}")
        if self._stopping.hurried:
            return 130
        if not restarts:
            return 1 if self._succession.successor() else ending.exit_code
        return self._pause(decision.delay)

    def _run_command(self, entry: AttemptEntry, notes: Notes) -> Ending:
        """Start the command, wait for its end, and end what it leaves behind."""
        began = time.monotonic()
        try:
            child = start(self._command.told(handover.of_attempt(entry)), self._signals)
        except Unusable as error:
            ending, pid, forced = Ending(code=error.exit_code), 0, str(error)
        else:
            # Arguments may hold secrets; the ranks record theirs, redacted.
            notes.append(WorkerStarted(at=time.time(), pid=child.pid, argv=self._command.argv[:1]))
            self._stopping.child, pid = child, child.pid
            forced = self._wait()
            left = self._stopping.seconds_left()
            grace = min(self._grace, SWEEP_SECONDS) if left is None else left
            survivors = kill_tree(grace, child.note_end, self._stopping)
            if survivors:
                pids = ", ".join(str(process.pid) for process in survivors)
                say(f"these processes outlive SIGKILL, and are left behind: {pids}")
            ending = child.ending or Ending(signal=9)
        notes.append(
            WorkerExited(
                at=time.time(),
                pid=pid,
                code=ending.code,
                signal=ending.signal,
                cause=self._cause(ending, pid),
                evidence=f"{ending}: {forced}" if forced else str(ending),
                seconds=time.monotonic() - began,
            )
        )
        return ending

    def _wait(self) -> str:
        """Wait for the child's end, or for a reason to end it, which is returned."""
        child = self._stopping.child
        assert child is not None
        look = time.monotonic() + LOOK_SECONDS
        while True:
            reap(child.note_end)
            if child.ending is not None:
                return ""
            left = self._stopping.seconds_left()
            if self._stopping.hurried:
                return "a second Ctrl-C"
            if left == 0:
                return f"it had not ended {self._grace:g} s after it was asked to"
            if time.monotonic() >= look:
                if self._succession.successor():
                    return "the run was taken over"
                look = time.monotonic() + LOOK_SECONDS
            until_look = look - time.monotonic()
            self._stopping.hear(until_look if left is None else min(left, until_look))

    def _cause(self, ending: Ending, pid: int) -> str:
        """The class of an end, for the journal."""
        if pid == 0:
            return "unusable"
        if self._succession.successor():
            return "fenced"
        if self._stopping.asked is not None:
            return "stopped"
        if ending.signal is not None:
            return "killed"
        return "failed" if ending.code else "done"

    def _measure(self, entry: AttemptEntry, ending: Ending) -> Ended:
        """How far it came: only steps that none before it had completed are progress."""
        restored, furthest = False, self._furthest
        try:
            for own in self._succession.own_since(entry):
                reached, last = recovery.progress(self._run, own)
                # The journal may lack the last steps of a killed process; its beat does not.
                said = beats.furthest(self._run.meeting(own.number, own.nonce))
                restored, furthest = restored or reached, max(furthest, last, said)
        except (OSError, WalrecoverError) as error:
            say(f"how far attempt {entry.number} came cannot be told: {error}")
        steps, self._furthest = furthest - self._furthest, furthest
        asked = self._stopping.asked is not None
        return Ended(entry.number, ending.code, ending.signal, restored, steps, asked)

    def _decide(self) -> Decision:
        successor = self._succession.successor()
        if successor is not None:
            return Decision("stop", 0.0, _taken_over(successor))
        return decide_restart(time.monotonic(), self._history, self._policy, random.random())

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
