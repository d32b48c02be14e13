"""Signals as data: what arrives is read from a descriptor, in order, by whoever waits.

Owns the handlers, the wake-up pipe and what a forked child must undo of them; must not know what
a signal leads to.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

STOP = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
PASSED = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH})
_HANDLED = STOP | PASSED | {signal.SIGCHLD}


class Interrupted(BaseException):
    """A signal asked us to stop while there was no child to pass it to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """While entered, handled signals arrive here. Main thread only.

    What was ignored on entry stays ignored, for us and for the child (`nohup`).
    """

    def __enter__(self) -> Signals:
        self._interrupts = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        self._before: dict[signal.Signals, Any] = {}
        for number in _HANDLED:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN or number is signal.SIGCHLD:
                self._before[number] = before
                signal.signal(number, self._on_signal)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        signal.set_wakeup_fd(self._wakeup)
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        os.close(self._reader)
        os.close(self._writer)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._interrupts and number in STOP:
            raise Interrupted(number)

    def fileno(self) -> int:
        return self._reader

    def take(self, seconds: float = 0.0) -> list[signal.Signals]:
        """The signals that have arrived, oldest first, waiting so long for the first of them."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if not poll.poll(max(0.0, seconds) * 1000 + (seconds > 0)):
            return []
        return [signal.Signals(number) for number in os.read(self._reader, 4096)]

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a stop signal raises Interrupted: for work that a crash could cut off as well."""
        self._interrupts = True
        try:
            if waiting := STOP.intersection(self.take()):
                raise Interrupted(min(waiting))
            yield
        finally:
            self._interrupts = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Inside, signals wait. Around a fork: what reaches the child before its exec must not
        come out of our pipe."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def forget_in_child(self) -> None:
        """In a forked child, before its exec: dispositions and mask as we found them."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
