"""Ends an attempt whose losses have gone bad, where the policy then goes back.

Owns when that is said: in the journal's thread the rule is asked, in the training thread the answer
is raised, at the next boundary. The rule is `losses`'.
"""

from __future__ import annotations

from collections.abc import Mapping

from walrecover.errors import BadLoss
from walrecover.journal import Journal
from walrecover.losses import Finding, Watch


class Alarm:
    """Of one rank; not `armed` it does nothing."""

    def __init__(self, armed: bool) -> None:
        self._watch = Watch() if armed else None
        self._found: Finding | None = None

    @property
    def is_armed(self) -> bool:
        return self._watch is not None

    def take(self, step: int, scalars: Mapping[str, float]) -> None:
        """In the journal's thread, in order."""
        if self._watch is not None:
            self._found = self._watch.take(step, scalars)

    def await_heard(self, journal: Journal) -> None:
        """In the training thread, before a snapshot: none is made of a loss that has gone bad. A
        snapshot waits for the same events itself (rule 6). Raises BadLoss, StorageFailed."""
        if self._watch is not None:
            journal.sync()
            self.check()

    def check(self) -> None:
        """In the training thread. Raises BadLoss, once."""
        found, self._found = self._found, None
        if found is not None:
            self._watch = None
            raise BadLoss(f"{found.reason}: the policy goes back to before it")
