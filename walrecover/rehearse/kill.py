"""Killing: waiting for the drawn moment of a run that trains, and what the kill really met.

Owns the waiting, the choice of the victim and the verdict whether a kill landed. Must not decide
which kills there are (`plan`), or what recovery made of them (`flow`).

A rank's page says, before and after its death, which step it has completed and whether it is in a
snapshot: what a kill met is read from there, never assumed. Where a saver writes the snapshots, a
rank is in one, too, from its capture to its commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from walrecover import entries as model
from walrecover.beats import Phase, Reading
from walrecover.entries import snapshot_name
from walrecover.errors import WalrecoverError
from walrecover.rehearse import tree
from walrecover.rehearse.plan import Kill
from walrecover.rehearse.readout import Timing
from walrecover.rehearse.stage import Performance
from walrecover.rehearse.tree import Victim
from walrecover.rehearse.watch import Attempt, Watch
from walrecover.sequence import Sequence

HOT_SECONDS = 0.0003
"""Between two looks when the moment is near. A page read costs a microsecond."""

CALM_SECONDS = 0.05
SEARCH_SECONDS = 0.01
LULL_SECONDS = 0.02
SEEN_SHARE = 0.5
"""Of the time from a capture to its commit, what there surely is to see: the saver's files."""

STALL_SECONDS = 300.0
TRAINING: tuple[Phase, ...] = ("first", "training", "between", "snapshot")


class Stalled(WalrecoverError):
    """The rehearsed run makes no progress any more."""


class Strike(NamedTuple):
    """A kill that was made. `step`, `phase`: where it met the run; `at`: Unix time.

    `rank` None: the victim was another process than a rank's.
    """

    step: int
    phase: Phase
    victim: str
    rank: int | None
    attempt: int
    nonce: str
    at: float
    landed: bool

    @property
    def inside(self) -> bool:
        """It cut a snapshot off: what other processes are in the midst of is not one."""
        return self.landed and self.phase == "snapshot" and self.rank is not None


class Killer:
    """Makes the kills of one performance. `on_step` hears where the run stands; `on_lull` gets the
    attempt's number, and may take a few milliseconds while no kill is near."""

    def __init__(
        self,
        performance: Performance,
        timing: Timing,
        *,
        on_step: Callable[[int], None],
        on_lull: Callable[[int], None],
    ) -> None:
        self._performance = performance
        self._timing = timing
        self._watch = Watch(performance.run, performance.pid)
        self._on_step, self._on_lull = on_step, on_lull
        self._heard: tuple[int, Reading | None] = (0, None)
        self._heard_at = time.monotonic()
        self._patience = STALL_SECONDS + 10 * timing.longest

    def close(self) -> None:
        self._watch.close()

    def strike(self, kill: Kill, after: int) -> Strike | None:
        """Wait for the kill's moment, later than step `after`, and make it; None where the run
        ended before. Raises Stalled."""
        floor = max(kill.step, after + 1)
        while self._performance.exit_code() is None:
            attempt = self._watch.attempt()
            if attempt is None:
                self._hear(0, None)
                self._rest(SEARCH_SECONDS)
                continue
            rank = int(kill.pick * len(attempt.ranks)) if not kill.aside else 0
            beat = attempt.read(rank)
            self._hear(attempt.number, beat)
            if not self._is_near(beat, floor):
                self._rest(self._distance(beat, floor), attempt)
            elif self._wait_for(kill, attempt, rank, beat):
                strike = self._kill(kill, attempt, rank, floor)
                if strike is not None:
                    return strike
            else:
                time.sleep(HOT_SECONDS)
        return None

    def follow(self) -> int:
        """Wait for the end of the run, and return its exit code. Raises Stalled."""
        while (code := self._performance.exit_code()) is None:
            attempt = self._watch.attempt()
            self._hear(attempt.number if attempt else 0, attempt.read(0) if attempt else None)
            self._rest(CALM_SECONDS, attempt)
        return code

    # -- waiting --------------------------------------------------------------------------------

    def _is_near(self, beat: Reading, floor: int) -> bool:
        return floor <= beat.step < self._timing.steps and beat.phase in TRAINING

    def _distance(self, beat: Reading, floor: int) -> float:
        """How long the moment is away, as far as the undisturbed run tells."""
        steps = floor - beat.step - 1
        return min(CALM_SECONDS, max(HOT_SECONDS, steps * self._timing.step_seconds / 2))

    def _wait_for(self, kill: Kill, attempt: Attempt, rank: int, beat: Reading) -> bool:
        """Wait for the drawn part of the step or snapshot that the rank is in; False where that
        is none to kill in."""
        inside = self._aims_inside(kill, beat)
        if inside and not self._is_in_snapshot(attempt, beat):
            return False
        timing, began = self._timing, time.monotonic()
        whole = timing.snapshot_seconds * SEEN_SHARE if inside else timing.step_seconds
        while (left := began + kill.moment * whole - time.monotonic()) > 0:
            time.sleep(min(left, CALM_SECONDS))
        # Between a capture and the first file of its saver there is nothing to see.
        while inside and not (now := self._is_in_snapshot(attempt, attempt.read(rank))):
            if time.monotonic() > began + timing.snapshot_seconds:
                return now
            time.sleep(HOT_SECONDS)
        return True

    @staticmethod
    def _aims_inside(kill: Kill, beat: Reading) -> bool:
        return kill.aim == "snapshot" and beat.step < kill.until

    def _is_in_snapshot(self, attempt: Attempt, beat: Reading) -> bool:
        return beat.phase == "snapshot" or bool(self._performance.saving(attempt.nonce))

    def _rest(self, seconds: float, attempt: Attempt | None = None) -> None:
        began = time.monotonic()
        if attempt is not None and seconds >= LULL_SECONDS:
            self._on_lull(attempt.number)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))

    def _hear(self, attempt: int, beat: Reading | None) -> None:
        """Pass on where the run stands; raise Stalled where that has not changed for long."""
        now = time.monotonic()
        if (attempt, beat) != self._heard:
            self._heard, self._heard_at = (attempt, beat), now
            if beat is not None:
                self._on_step(beat.step)
        elif now - self._heard_at > self._patience:
            raise Stalled(
                f"the rehearsed run has made no progress for {now - self._heard_at:.0f} s\n"
                + self._performance.last_words()
            )

    # -- the kill -------------------------------------------------------------------------------

    def _kill(self, kill: Kill, attempt: Attempt, rank: int, floor: int) -> Strike | None:
        """Kill now; None where nobody died of it, so that it has to be made again."""
        victim = self._victim(kill, attempt, rank)
        before = attempt.read(rank)
        if not self._is_near(before, floor):
            return None
        saving = self._performance.saving(attempt.nonce)
        if before.phase == "snapshot":  # its saver has not begun a file yet, perhaps
            saving |= {snapshot_name(before.step, attempt.number, attempt.nonce, False)}
        if self._aims_inside(kill, before) and not saving:
            return None  # it was committed in this moment
        at = time.time()
        if not tree.kill(victim.process):
            return None
        # A rank's page stays as it was at its death; another's death is met where it was before.
        met = attempt.read(rank) if victim.rank is not None else before
        if met.phase in TRAINING and self._outlasts(saving, at):
            met = met._replace(phase="snapshot")
        return Strike(
            step=met.step,
            phase=met.phase,
            victim=victim.label,
            rank=victim.rank,
            attempt=attempt.number,
            nonce=attempt.nonce,
            at=at,
            landed=met.phase in TRAINING and not self._is_finished(),
        )

    def _victim(self, kill: Kill, attempt: Attempt, rank: int) -> Victim:
        if kill.aside:
            ranks = [one.process.pid for one in attempt.ranks]
            found = tree.others(self._performance.pid, ranks)
            if found:
                return found[int(kill.pick * len(found))]
            rank = int(kill.pick * len(attempt.ranks))
        return Victim(attempt.ranks[rank].process, f"rank {rank}", rank)

    def _outlasts(self, saving: set[str], at: float) -> bool:
        """Whether one of these snapshots was not committed before this Unix time; it may be now."""
        found = model.commits(Sequence(self._performance.run.sequence).read())
        return bool(saving - {one.snapshot.name for one in found if one.at <= at})

    def _is_finished(self) -> bool:
        return model.finished(Sequence(self._performance.run.sequence).read())
