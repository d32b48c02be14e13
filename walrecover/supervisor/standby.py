"""Standbys: processes that stand ready to be the next attempt.

Owns when one is started, what it is told, whether it fits the next attempt, and its end. What it
does meanwhile is `promotion`'s, in the user's interpreter. Must not start attempts: where a standby
cannot take over, it says so, and the caller starts the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Literal

from walrecover import beats
from walrecover.commands import NotPython, script_of
from walrecover.entries import AttemptEntry
from walrecover.errors import WalrecoverError
from walrecover.events import AttemptBegun, ModulesImported
from walrecover.journal import Reader, inspector
from walrecover.processes import OnEnd, kill_tree, prepare
from walrecover.promotion import MARK, MESSAGE_BYTES
from walrecover.rundir import RunDir
from walrecover.supervisor.child import Child, Command, Unusable, start
from walrecover.supervisor.handover import PER_ATTEMPT
from walrecover.supervisor.notes import say
from walrecover.supervisor.signals import Signals

Kind = Literal["off", "imported", "parked"]

HOOK = Path(__file__).with_name("hook")
LOOK_SECONDS = 0.25
ANSWER_SECONDS = 5.0
"""For the last look at its files; a standby that was stopped never answers."""

DIED = "it died"
STARTS = 2
"""In one attempt: a standby that died is replaced once."""

EARLY_EVENTS = 512
"""Among which a rank writes what it has imported: behind its first step."""


class _Standby:
    """One standby, and what it has said: that it waits, that it took over, or why it never will."""

    def __init__(self, environ: Mapping[str, str], child: Child, channel: socket.socket) -> None:
        self.environ = environ
        self.child = child
        self.ready = self.taken = False
        self.refused = ""
        self._channel = channel

    def hear(self, seconds: float = 0.0) -> None:
        """Take what it says within so many seconds."""
        while not (self.taken or self.refused) and _readable(self._channel, seconds):
            try:
                message = self._channel.recv(MESSAGE_BYTES).decode(errors="replace")
            except ConnectionError:
                message = ""
            word, _, rest = message.partition(" ")
            self.ready, self.taken = word == "ready", word == "taken"
            if word == "refused":
                self.refused = rest
            elif not word:
                self.refused = DIED
            seconds = 0.0

    def promote(self, told: Mapping[str, str]) -> bool:
        """Have it take over, with what an attempt is told."""
        message = "\0".join(f"{name}={value}" for name, value in told.items())
        with contextlib.suppress(ConnectionError):
            self._channel.send(os.fsencode(message))
        self.hear(ANSWER_SECONDS)
        if not (self.taken or self.refused):
            self.refused = f"it did not answer within {ANSWER_SECONDS:g} s"
        self._channel.close()
        return self.taken

    def close(self) -> None:
        self.child.send(SIGKILL)
        self._channel.close()


class Standbys:
    """At most one standby of a command, through all its attempts."""

    def __init__(self, kind: Kind, argv: Sequence[str], run: RunDir, signals: Signals) -> None:
        self._kind: Kind = kind
        self._run, self._signals = run, signals
        self._standby: _Standby | None = None
        self._unreaped: dict[int, Child] = {}
        self._entry: AttemptEntry | None = None
        self._starts_left = 0
        self._next_look = 0.0
        self._said: set[str] = set()
        script = script_of(argv)
        if isinstance(script, NotPython):
            if kind == "parked":
                self._say(script.reason)
            self._kind = "off"

    @property
    def pid(self) -> int | None:
        standby = self._standby
        return standby.child.pid if standby and standby.child.ending is None else None

    def kept(self) -> list[int]:
        """The processes that are to outlive their attempt: the standby, and the one that will
        examine the attempt's journal."""
        return [pid for pid in (self.pid, inspector.prepared()) if pid is not None]

    def begin(self, entry: AttemptEntry) -> None:
        """An attempt begins: what it imports is for the next one."""
        self._entry, self._starts_left = entry, 0 if self._kind == "off" else STARTS

    def promote(self, command: Command) -> tuple[Child, Kind] | None:
        """The standby as this attempt's process; None where the start has to be a cold one."""
        standby = self._standby
        if standby is None:
            return None
        standby.hear()
        if not (standby.ready or standby.refused):
            return None  # it goes on importing, for the next restart
        if _lasting(standby.environ) != _lasting(command.environ):
            standby.refused = "the attempt's environment is another one"
        told = {name: command.environ[name] for name in PER_ATTEMPT if name in command.environ}
        if standby.refused or not standby.promote(told):
            self._drop(standby)
            return None
        self._standby = None
        del self._unreaped[standby.child.pid]
        return standby.child, self._kind

    def look(self, command: Command, child: Child) -> None:
        """While an attempt goes on: see to it that there is a standby."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        if self._standby is not None:
            self._standby.hear()
            if self._standby.refused:
                if self._standby.refused != DIED:
                    self._kind, self._starts_left = "off", 0  # it would say so again
                self._drop(self._standby)
        elif self._starts_left and self._entry is not None:
            learned = self._learned(self._entry, child)
            if learned is not None:
                self._starts_left -= 1
                self._start(command, learned)

    def seconds_to_look(self) -> float:
        """Until `look` has something to do; while one waits, others' reasons to wake will do."""
        looks = self._starts_left and self._standby is None
        return max(0.0, self._next_look - time.monotonic()) if looks else 3600.0

    def apart(self, on_end: OnEnd) -> OnEnd:
        """Passes on the ends of all processes but the standbys'."""

        def heard(pid: int, status: int, peak: int) -> None:
            note = self._unreaped.pop(pid).note_end if pid in self._unreaped else on_end
            note(pid, status, peak)

        return heard

    def dismiss(self) -> None:
        """There will be no other attempt: free the memory. It may catch signals by now, as its
        script does, so it is not asked."""
        self._starts_left = 0
        inspector.dismiss()
        if self._standby is not None:
            self._standby.close()
            self._standby = None

    def close(self) -> None:
        """End the standby, and what it has started."""
        self.dismiss()
        if self._unreaped:
            kill_tree(0.0, self.apart(lambda pid, status, peak: None))

    def _start(self, command: Command, learned: ModulesImported) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _listed(learned) as listed:
            path = os.pathsep.join(filter(None, [str(HOOK), command.environ.get("PYTHONPATH")]))
            mark = f"{self._kind}:{theirs.fileno()}:{listed}"
            environ = _lasting(command.environ)
            told = command._replace(
                environ={**environ, "PYTHONPATH": path, MARK: mark},
                descriptors=(*command.descriptors, theirs.fileno(), listed),
            )
            try:
                child = start(told, self._signals)
            except Unusable as error:
                ours.close()
                self._say(str(error))
                return
        prepare()
        inspector.prepare()
        self._unreaped[child.pid] = child
        self._standby = _Standby(environ, child, ours)

    def _learned(self, entry: AttemptEntry, child: Child) -> ModulesImported | None:
        """What this attempt has imported, once it says so. An attempt that attaches in another
        process than the command's own has no standby."""
        begun_at = entry.plan.base.step if entry.plan.base else 0
        if beats.furthest(self._run.meeting(entry.number, entry.nonce)) <= begun_at:
            return None
        try:
            with Reader(self._run.stream(entry.number, entry.nonce, "rank-0")) as reader:
                for lsn, event in reader.read(upto=EARLY_EVENTS):
                    if isinstance(event, AttemptBegun) and event.pid != child.pid:
                        self._starts_left = 0
                        return None
                    if isinstance(event, ModulesImported):
                        return event
                    if lsn == EARLY_EVENTS:
                        self._starts_left = 0
        except (OSError, WalrecoverError):
            pass  # it is being made
        return None

    def _drop(self, standby: _Standby) -> None:
        self._say(standby.refused)
        standby.close()
        self._standby = None

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            say(f"no standby, the next start is a cold one: {reason}")


def _lasting(environ: Mapping[str, str]) -> dict[str, str]:
    """What is the same for all attempts."""
    return {name: value for name, value in environ.items() if name not in PER_ATTEMPT}


@contextlib.contextmanager
def _listed(learned: ModulesImported) -> Iterator[int]:
    """A descriptor of a file that tells a standby what to import."""
    fd = os.memfd_create("walrecover-names")
    try:
        text = f"{' '.join(learned.names)}\n{' '.join(learned.environment)}"
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        yield fd
    finally:
        os.close(fd)


def _readable(channel: socket.socket, seconds: float) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
