"""What a rewind goes back for, and what it leaves out: read from the journal, the same every time.

Owns the reading; the rule over losses is `losses`', the arithmetic of positions `skips`', the
choice of a base `recovery`'s.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from walrecover import entries as model
from walrecover import lineage, past
from walrecover import skips as skipping
from walrecover.entries import Entry, Rewind, Skip
from walrecover.events import DataOpened, PassEnded, ScalarsArrived, StepCompleted
from walrecover.losses import Watch
from walrecover.rundir import RunDir
from walrecover.skips import Standing

BY_DATA = ("numeric", "data")
"""Causes for which what was read may be to blame: only then a rewind leaves it out."""


def judged(run: RunDir, entries: Many[Entry], why: str) -> tuple[Rewind, int]:
    """What was bad in the newest attempt, and the last step that it completed.

    Where the losses in its journal are good, the step is the one that was being made.
    """
    newest = lineage.history(run.name, entries)[:1]
    last = newest[0].base if newest else 0
    watches: dict[int, Watch] = {}
    for told in past.read(run, newest, []):
        event = told.event
        if isinstance(event, StepCompleted | ScalarsArrived):
            last = max(last, event.step)
            watches.setdefault(told.rank, Watch()).take(event.step, event.scalars)
    found = min((watch.found for watch in watches.values() if watch.found), default=None)
    if found is not None:
        return Rewind(found.step, found.reason), last
    return Rewind(last + 1, why), last


def left_out(run: RunDir, entries: Many[Entry], base: int, bad: int, last: int) -> tuple[Skip, ...]:
    """What the steps behind `base`, through `bad`, have consumed; all that was skipped before.

    A step that was not completed has left no word. What it took are the positions behind those of
    the step before it, as many as that one took.
    """
    before = model.skips(entries)
    standing = Standing()
    steps: list[StepCompleted] = []
    of_last: list[StepCompleted] = []
    history = lineage.history(run.name, entries)
    for told in past.read(run, [one for one in history if _reaches(one.cut, base)], []):
        event = told.event
        if isinstance(event, StepCompleted):
            if event.step > bad:
                continue
            if event.step > base:
                steps.append(event)
            if event.step == last:
                of_last.append(event)
        if isinstance(event, StepCompleted | DataOpened | PassEnded):
            standing.take(event)
    more = skipping.following(of_last, standing, before) if bad > last else ()
    fresh = skipping.between(steps, standing, because(bad), more)
    return (*before, *fresh)


def because(bad: int) -> str:
    """Why a rewind leaves something out."""
    return f"bad at step {bad}"


def _reaches(cut: int | None, base: int) -> bool:
    return cut is None or cut >= base
