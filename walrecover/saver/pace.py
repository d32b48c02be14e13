"""How fast the saver works: flat out on an idle machine, in small bites beside a training.

Owns the pauses between two pieces, the saver's place in the scheduler, and that it hears of orders
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

PAUSE_SECONDS = 0.001


class Standing:
    """Each thread's place in the scheduler: behind everybody, or, while somebody waits for it,
    among them. There is no way back from SCHED_IDLE without a privilege (CAP_SYS_NICE): where that
    is missing it stays behind, and a machine that is full makes those who wait wait longer."""

    def __init__(self) -> None:
        self._here = threading.local()

    def place(self, *, behind: bool) -> None:
        """Of the thread that calls."""
        if behind is not getattr(self._here, "behind", None):
            self._here.behind = behind
            policy = os.SCHED_IDLE if behind else os.SCHED_OTHER
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, policy, os.sched_param(0))


class Breath:
    """Called between two pieces of work, in any thread. `busy`: whether somebody needs the machine
    now. `listen` takes what orders have come, in the thread that all of this began in."""

    def __init__(
        self,
        busy: Callable[[], bool],
        listen: Callable[[], object],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._busy, self._listen, self._sleep = busy, listen, sleep
        self._thread = threading.get_ident()
        self.hurried = False

    def __call__(self, nbytes: int) -> bool:
        """Returns whether it paused."""
        if threading.get_ident() == self._thread:
            self._listen()
        busy = not self.hurried and self._busy()
        if busy:
            self._sleep(PAUSE_SECONDS)
        return busy
