"""Just in time: the state of the last completed step, saved when the script fails in the next.

Owns what is kept at every boundary, and the decision whether it may be saved on the way out, with
its reason. A state is saved only as it was at a boundary (rule 12): what a failed step has moved
comes from copies, and where the rest is not whole nothing is saved and the last commit stands.
Waits for no collective: each rank votes for itself, and the last one to vote commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from walrecover.commits import Key
from walrecover.errors import StorageFailed, WalrecoverError
from walrecover.plain import Unstorable
from walrecover.session.loops import Loops
from walrecover.session.moment import Captures, Moment, counts
from walrecover.session.position import Position
from walrecover.session.restoring import position_tree
from walrecover.session.saving import WAIT_SECONDS, Saver
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.copies import Copies, TooMuch
from walrecover.torch_adapter.keeping import Keeper, NotWhole
from walrecover.torch_adapter.objects import Attached
from walrecover.wording import shortened

OTHERS_SECONDS = 1.0
"""For the other ranks' votes. Those that wait for this one in a collective vote once it is gone."""

SLOW_SECONDS, SLOW_SHARE, SLOW_TIMES = 1e-3, 0.05, 16
"""Copies that take more of a step than this, so many times in a row, are made no more."""


class Kept(msgspec.Struct, frozen=True):
    step: int
    position: Position
    rng: dict[str, Any]


class Outcome(NamedTuple):
    """What became of the last completed step. `stands`: the step of the last commit."""

    step: int
    saved: bool
    reason: str
    stands: int

    def __str__(self) -> str:
        if self.saved:
            return f"step {self.step} is saved on the way out"
        last = f"the last commit, step {self.stands}, stands" if self.stands else "no commit stands"
        return f"step {self.step} is not saved on the way out: {self.reason}; {last}"


class Salvage:
    """What one rank keeps, and saves on the way out."""

    def __init__(
        self,
        attached: Attached,
        loops: Loops,
        saver: Saver,
        captures: Captures,
        base: int,
        say: Callable[[str], None],
    ) -> None:
        self._keeper = Keeper(attached)
        self._loops, self._saver, self._captures = loops, saver, captures
        self._base, self._say = base, say
        self._kept: Kept | None = None
        self._slow = 0

    def close(self) -> None:
        self._keeper.close()
        self._kept = None

    # -- at a boundary --------------------------------------------------------------------------

    def keep(self, step: int, took: float, drawn: dict[str, Any]) -> dict[str, Any]:
        """Keep the state of this boundary; `took` seconds was its step, `drawn` is the random state
        before. Returns the one behind it: the objects' own code may draw."""
        self._kept = None
        if self._keeper.refusal:
            return drawn
        began = time.perf_counter() if self._keeper.asks else 0.0
        try:
            self._keeper.keep()
            position, asked = _copied(self._loops.position())
        except TooMuch as error:
            self._give_up(f"{error}, too many to be copied at each step")
            return rng.capture()
        if asked or self._keeper.asks:
            drawn = rng.capture()
        self._kept = Kept(step, position, drawn)
        if self._keeper.asks:
            self._watch(time.perf_counter() - began, took)
        return drawn

    def forget(self) -> None:
        """The state of this boundary is saved."""
        self._kept = None

    def _watch(self, seconds: float, took: float) -> None:
        """Objects of the script's own may make their state slowly, or wait for a device."""
        slow = seconds > max(SLOW_SECONDS, SLOW_SHARE * took)
        self._slow = self._slow + 1 if slow else 0
        if self._slow == SLOW_TIMES:
            self._kept = None
            self._give_up(f"copying the state at each step takes {seconds * 1e3:.1f} ms")

    def _give_up(self, reason: str) -> None:
        self._keeper.refusal = reason
        self._say(f"what fails loses the steps since the last snapshot: {reason}")

    # -- on the way out -------------------------------------------------------------------------

    def save(self, step: int, last: Key | None, left: float | None) -> Outcome | None:
        """Save the last completed step if that is still possible; None where there is nothing to
        lose. `last`: the newest capture of this rank. `left`: seconds, where there is a limit."""
        committed = self._committed(left)
        if step <= committed or self._saver.failed:
            return None
        key = Key(step, False)
        try:
            if last is None or last < key:
                self._vote(key, left)
            if not self._saver.settle(key, OTHERS_SECONDS):
                raise NotWhole(
                    self._saver.abandoned.get(key) or "not every rank has saved its part of it"
                )
        except (WalrecoverError, OSError, Unstorable, RuntimeError) as error:
            reason = str(error) if isinstance(error, WalrecoverError) else shortened(str(error))
            return self._rescue(step, committed, reason)
        return Outcome(step, True, "", step)

    def _rescue(self, step: int, committed: int, reason: str) -> Outcome:
        """What was kept in memory may still be saved: of this step, or of the one before."""
        key = self._saver.rescue()
        if key is None or not self._saver.settle(key, OTHERS_SECONDS):
            return Outcome(step, False, reason, committed)
        if key.step == step:
            return Outcome(step, True, "", step)
        return Outcome(step, False, reason, key.step)

    def lost(self, step: int, reason: str, left: float | None) -> Outcome:
        """It is not saved, for a reason of the caller's."""
        return Outcome(step, False, reason, self._committed(left))

    def _committed(self, left: float | None) -> int:
        """The step of the last commit, once it is known of what was given to be saved."""
        given = self._saver.pending()
        own = WAIT_SECONDS if left is None else left
        if given is not None and self._saver.settle(given, min(own, OTHERS_SECONDS), own):
            return given.step
        self._saver.note_commits()
        return self._saver.committed.step if self._saver.committed else self._base

    def _vote(self, key: Key, left: float | None) -> None:
        moment = self._moment(key.step)
        if self._saver.tried == key:
            raise StorageFailed("its snapshot was refused before")
        if too_late := self._saver.too_late(left):
            raise NotWhole(too_late)
        capture = self._captures.of(key, moment, self._saver.committed_lsn)
        if not self._saver.save(capture, lone=True):
            raise StorageFailed(self._saver.abandoned[key])

    def _moment(self, step: int) -> Moment:
        """The state of the last boundary. Raises NotWhole."""
        if self._loops.goes_on_elsewhere():
            raise NotWhole("another thread goes on training")
        if self._loops.step_waiting:
            raise NotWhole("the code behind its run.step() had not come to the loop's next item")
        kept = self._kept
        if kept is None or kept.step != step:
            raise NotWhole(self._keeper.refusal or "no state was kept at its boundary")
        state = self._keeper.state(self._saver.known)
        return Moment(state, position_tree(kept.position), counts(kept.position), kept.rng)


def _copied(position: Position) -> tuple[Position, bool]:
    """A position that does not move with its loaders, and whether one was asked for its state.
    Raises TooMuch."""
    states = [source for place in position.places for source in place.sources if "state" in source]
    if states:
        copies = Copies()
        for source in states:
            source["state"] = copies.of(source["state"], "the state of a loader")
        copies.finish()
        if copies.referenced:
            raise TooMuch("the state of a loader holds more bytes")
    return position, bool(states)
