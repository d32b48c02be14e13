"""What rank 0 announces at its boundaries, and how the others ask for it: paces and stops.

Owns when something is announced; how, and what the others promise, is `meeting`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from walrecover import events as ev
from walrecover.errors import StorageFailed
from walrecover.journal import Journal
from walrecover.session.meeting import Meeting
from walrecover.session.pacing import Pacer
from walrecover.session.stopping import Signals
from walrecover.torch_adapter.ranks import World

MEASURED_STEPS = 3
PACE_CHANGE = 1.5
PACE_LOOK = 8  # steps from one look to the next, once a pace is known


class Agreement:
    """One rank's part in it, at each of its boundaries."""

    def __init__(
        self,
        meeting: Meeting,
        signals: Signals,
        ranks: World,
        journal: Journal,
        pacer: Pacer,
        say: Callable[[str], None],
    ) -> None:
        self._meeting, self._signals, self._ranks = meeting, signals, ranks
        self._journal, self._pacer, self._say = journal, pacer, say
        self._refused = False

    def reach(self, step: int, times: Sequence[float]) -> None:
        """Announce (rank 0) and take in what was announced. `times`: seconds of the last steps. A
        disk that refuses costs a pace or a later stop, never the training."""
        try:
            self._announce(step, times)
        except (StorageFailed, OSError) as error:
            if not self._refused:
                self._say(f"the ranks cannot agree on a pace or a stop: {error}")
            self._refused = True

    def _announce(self, step: int, times: Sequence[float]) -> None:
        asked = self._meeting.read() if self._ranks.size > 1 else None
        own = self._signals.received
        if self._ranks.rank != 0:
            if own is not None:
                self._meeting.request_stop(own)
            return
        asked = asked if own is None else own
        if asked is not None and self._meeting.stop is None:
            self._announce_stop(step, asked)
        if self._pacer.every.seconds is not None and len(times) > MEASURED_STEPS:
            self._announce_pace(step, times)

    def _announce_stop(self, step: int, asked: int) -> None:
        free = self._meeting.free_step(step)
        if free is not None:
            at = step if self._ranks.size == 1 else free
            self._meeting.announce("stop", at, asked)
            self._journal.append(ev.StopAnnounced(at=time.time(), step=at, signal=asked))

    def _announce_pace(self, step: int, times: Sequence[float]) -> None:
        known = self._meeting.paces[-1].every if self._meeting.paces else None
        if known and step % PACE_LOOK:
            return
        wanted = self._pacer.choose(times)
        if known and 1 / PACE_CHANGE < wanted.steps / known < PACE_CHANGE:
            return
        free = self._meeting.free_step(step)
        if free is not None:
            self._meeting.announce("pace", free, wanted.steps)
            self._journal.append(
                ev.PaceSet(
                    at=time.time(),
                    from_step=free,
                    every=wanted.steps,
                    seconds=wanted.seconds,
                    cost=wanted.cost,
                    between=wanted.between,
                )
            )
