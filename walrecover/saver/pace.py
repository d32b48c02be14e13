"""How fast the saver works: flat out on an idle machine, in small bites beside a training.

Owns the pauses between two pieces, and that the saver hears of orders meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE_SECONDS = 0.001


class Breath:
    """Called between two pieces of work. `busy`: whether somebody needs the machine now. `listen`
    takes what orders have come."""

    def __init__(
        self,
        busy: Callable[[], bool],
        listen: Callable[[], object],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._busy, self._listen, self._sleep = busy, listen, sleep
        self.hurried = False

    def __call__(self, nbytes: int) -> None:
        self._listen()
        if not self.hurried and self._busy():
            self._sleep(PAUSE_SECONDS)
