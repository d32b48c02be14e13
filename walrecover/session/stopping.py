"""Signals that ask a run to stop: noted, acted on at a boundary, never in the handler.

Owns the handlers for SIGTERM, SIGINT and the cluster's early warning (SIGUSR1, or what
`--preempt-signal` says) while a run is attached. A second SIGINT raises
KeyboardInterrupt at once. A forked child (a DataLoader worker) inherits the handler and must die
of the signal as if it were not there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

HANDLED = (signal.SIGTERM, signal.SIGINT)
_HEX = 16


class Signals:
    """`received`: the first signal that asked to stop. `deadline`: monotonic, where one is set."""

    def __init__(self, grace: float | None = None, notice: int | None = None) -> None:
        self.received: int | None = None
        self.deadline: float | None = None
        self._grace = grace
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can set handlers; the script's own stay
        for number in {*HANDLED, notice or HANDLED[0]}:
            before = signal.getsignal(number)
            if number not in HANDLED and _is_caught(number):
                continue  # by a handler that Python does not know, such as faulthandler's
            if before in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = before
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = number
            self.deadline = None if self._grace is None else time.monotonic() + self._grace

    def seconds_left(self) -> float | None:
        """Until the grace is over; None where nobody asked for a stop, or there is no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def close(self) -> None:
        """Put the handlers back that were there before."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)
        self._before = {}


def _is_caught(number: int) -> bool:
    """Whether the process has a handler for a signal, whoever installed it."""
    with open("/proc/self/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], _HEX) >> (number - 1) & 1)
