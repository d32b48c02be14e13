"""Processes that the guardian keeps: started, heard line by line, started again when they die.

Owns their life, in a thread of its own each. What they say is the caller's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before it is started again."""

LEAVE_SECONDS = 5.0
"""So long may it go on once its input has ended."""


class Child:
    """`words`: what `python -P -m` runs. `first` makes what it is told at its beginning; `hear`
    gets its lines, `died` its exit status. All are called in the child's thread."""

    def __init__(
        self,
        words: list[str],
        hear: Callable[[bytes], None],
        first: Callable[[], bytes] = lambda: b"",
        died: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._words, self._hear, self._first, self._died = words, hear, first, died
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"walrecover {words[0]}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """It ends when its input does; `join` waits for that."""
        self._stopping.set()
        if self._process is not None:
            _close_input(self._process)

    def join(self) -> None:
        self._thread.join(LEAVE_SECONDS)
        if self._process is not None and self._thread.is_alive():
            self._process.kill()
            self._thread.join()

    def _keep(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            status, lines = self._once()
            if self._stopping.is_set():
                return
            self._died(status)
            pause = FIRST_PAUSE if lines else min(2 * pause, LONGEST_PAUSE)
            self._stopping.wait(pause)

    def _once(self) -> tuple[int, int]:
        """One life: its exit status, and how many lines it said."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it has died already, or we are stopping
            process.stdin.write(self._first())
            process.stdin.flush()
        if self._stopping.is_set():
            _close_input(process)
        lines = 0
        for line in process.stdout:
            self._hear(line)
            lines += 1
        status = process.wait()
        process.stdout.close()
        _close_input(process)
        return status, lines


def _close_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()
