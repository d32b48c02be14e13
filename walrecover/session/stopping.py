"""Signals that ask a run to stop: noted, acted on at a boundary, never in the handler.

Owns the handlers for SIGTERM and SIGINT while a run is attached. A second SIGINT raises
KeyboardInterrupt at once. A forked child (a DataLoader worker) inherits the handler and must die
of the signal as if it were not there.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

HANDLED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    def __init__(self) -> None:
        self.received: int | None = None
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can set handlers; the script's own stay
        for number in HANDLED:
            before = signal.getsignal(number)
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

    def close(self) -> None:
        """Put the handlers back that were there before."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)
        self._before = {}
