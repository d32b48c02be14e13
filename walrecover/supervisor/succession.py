"""Rule 15, "fenced is final": has an attempt that is not ours taken the run over?

Owns looking at the sequence for a successor, cheaply enough to do so every few seconds; must not
decide what follows from it.
"""

from __future__ import annotations

from walrecover.entries import AttemptEntry, attempts, newest_attempt
from walrecover.errors import WalrecoverError
from walrecover.sequence import Sequence


class Succession:
    """The run's attempts, as seen by the supervisor of this id.

    Entries by our workers are ours too: torchrun starts them again by itself, and then they enter
    an attempt, with our id.
    """

    def __init__(self, sequence: Sequence, supervisor: str) -> None:
        self._sequence = sequence
        self._supervisor = supervisor

    def successor(self) -> AttemptEntry | None:
        """The newest attempt, where somebody else has entered it.

        A sequence that cannot be read now names nobody: safety does not depend on this look, and
        the next attempt's entry reads it again.
        """
        try:
            newest = newest_attempt(self._sequence.read())
        except (OSError, WalrecoverError):
            return None
        return newest if newest and newest.holder.supervisor != self._supervisor else None

    def own_since(self, entry: AttemptEntry) -> list[AttemptEntry]:
        """This attempt and those that our workers entered after it."""
        return [
            other
            for other in attempts(self._sequence.read())
            if other.holder.supervisor == self._supervisor and other.number >= entry.number
        ]

    def at_work(self, entry: AttemptEntry) -> AttemptEntry:
        """The last of those; this one where that cannot be read now."""
        try:
            return self.own_since(entry)[-1]
        except (OSError, WalrecoverError, IndexError):
            return entry
