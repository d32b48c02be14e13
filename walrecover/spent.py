"""What one stream says of its rank's time, as its events come: training, and standing still for
captures.

Pure. Owns the sums and the marks, of which there are few however many steps come; what a run's
time adds up to is `goodput`'s. Times are the events' `at`, on the clock of the stream's host. One
that goes back adds nothing until it has caught up.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

FINE = 16
"""Marks lie at each of the first so many steps of a stream, and are never further apart than the
steps before them over this number: between two of them time is taken to pass evenly."""


class Spent(msgspec.Struct):
    """`since`: when training began, all objects restored and the data at its place; 0 for never.
    `last`: of the last step, or the end of what the loop last waited for: from the one to the
    other it trained, but for the seconds `stalled`. `captures`: how many of them were timed, and
    `capturing` their seconds. `marks`: (step, seconds trained through it); `next`: the step that
    gets the next one.
    """

    since: float = 0.0
    last: float = 0.0
    stalled: float = 0.0
    captures: int = 0
    capturing: float = 0.0
    next: int = 0
    marks: list[tuple[int, float]] = []

    @property
    def trained(self) -> float:
        """Seconds."""
        return self.last - self.since - self.stalled

    def begin(self, at: float) -> None:
        """All is restored, or the script is back at its place: training starts, or starts later
        than it seemed."""
        if not self.marks and at > self.last:
            self.since = self.last = at
            self.stalled = 0.0  # it stood still before training began

    def complete(self, step: int, at: float) -> None:
        """A step is complete. The fold does nothing as often: it writes down one number."""
        if at > self.last:
            self.last = at
        if step >= self.next:
            self._mark(step)

    def _mark(self, step: int) -> None:
        if not self.marks:
            self.since = self.since or self.last
            self.marks.append((step - 1, 0.0))
        self.marks.append((step, self.trained))
        self.next = step + max(1, (step - self.marks[0][0]) // FINE)

    def stall(self, at: float, seconds: float, *, capture: bool) -> None:
        """The loop stood still for so long until now, for a capture or what belongs to one."""
        seconds = max(0.0, seconds)
        if capture:
            self.captures += 1
            self.capturing += seconds
        if self.last and at > self.last:
            self.stalled += min(seconds, at - self.last)
            self.last = at

    def through(self, step: int, last: int) -> float:
        """Seconds trained until this step was complete. `last`: the last one that was."""
        if step >= last:
            return self.trained
        place = bisect_right(self.marks, (step, float("inf")))
        if not place:
            return 0.0
        before, spent = self.marks[place - 1]
        after, until = self.marks[place] if place < len(self.marks) else (last, self.trained)
        return spent + (until - spent) * (step - before) / (after - before)
