"""What people ask of a running command by signals: to stop, then to hurry, or its own affair.

Owns how often which signal was heard and until when a stop may take; passes signals on, and
leaves all killing to the loop.
"""

from __future__ import annotations

import time
from signal import SIGINT, SIGTERM

from walrecover.supervisor.child import Child
from walrecover.supervisor.notes import say
from walrecover.supervisor.signals import PASSED, STOP, Signals

# Wrappers such as `timeout` send one Ctrl-C twice: to us, and to our group.
_SAME_SECONDS = 0.2


class Stopping:
    """`asked`: the first stop signal, SIGTERM also where it was the cluster's early warning
    (`notice`). `hurried`: a second Ctrl-C came. `deadline`: monotonic."""

    def __init__(self, signals: Signals, grace: float, notice: int | None = None) -> None:
        self.asked: int | None = None
        self.times_asked = 0
        self.hurried = False
        self.deadline: float | None = None
        self.child: Child | None = None
        self._signals = signals
        self._grace = grace
        self._notice = notice
        self._interrupted: float | None = None

    @property
    def cause(self) -> str:
        """The class of an end that was asked for: clusters preempt by SIGTERM."""
        return "preempted" if self.asked == SIGTERM else "stopped"

    def fileno(self) -> int:
        return self._signals.fileno()

    def __call__(self) -> bool:
        """Hear what has arrived, and say whether there is a hurry (`processes.Hurry`)."""
        self.hear()
        return self.hurried

    def hear(self, seconds: float = 0.0) -> None:
        """Take what arrives within so many seconds, and pass it on to the child."""
        for number in self._signals.take(seconds):
            if number == self._notice:
                number = SIGTERM  # an early warning would kill a launcher that does not know it
            if number in STOP:
                self._stop(number)
                self.times_asked += 1
            if number in PASSED or (number in STOP and not self.hurried):
                self._pass_on(number)

    def seconds_left(self) -> float | None:
        """Until the deadline, at least zero; None where nobody asked for a stop."""
        if self.hurried:
            return 0.0
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _stop(self, number: int) -> None:
        now = time.monotonic()
        if number == SIGINT:
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted > _SAME_SECONDS:
                self.hurried = True
        if self.asked is None:
            self.asked, self.deadline = number, now + self._grace
            if self.child is not None and self.child.ending is None:
                more = "; a second Ctrl-C kills it" if number == SIGINT else ""
                say(f"asked to stop: the command has {self._grace:g} s to end{more}")

    def _pass_on(self, number: int) -> None:
        if self.child is not None:
            self.child.send(number)
