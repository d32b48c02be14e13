"""Who holds the others up, and the sentence that people read of a hang.

Owns naming the slowest rank from how long each stood and what was seen of its process. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from walrecover.hangs import Hang, Standing, Times


class Condition(NamedTuple):
    """What the kernel and the stacks say of a rank's process.

    `state`: as in /proc (R, S, D, T, …; empty where it is gone). `waits`: its main thread stands
    in a collective or in a backward pass that ends in one. `where`: its innermost frame.
    """

    state: str = ""
    waits: bool = False
    where: str = ""


_STUCK = frozenset("TtDZ")


def slowest(hang: Hang, conditions: Mapping[int, Condition]) -> Standing:
    """Whom the others wait for: who lacks most steps; of equals who is gone, stopped or
    uninterruptible, then who does not stand in a collective, then who said the last word first."""

    def key(one: Standing) -> tuple[int, bool, bool, float]:
        condition = conditions.get(one.rank or 0, Condition())
        return (one.step, not (one.gone or condition.state in _STUCK), condition.waits, one.at)

    return min(hang.standings, key=key)


_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "uninterruptible"}


def describe(hang: Hang, conditions: Mapping[int, Condition], times: Times) -> tuple[Standing, str]:
    """The rank to blame, and the sentence that people read."""
    one = slowest(hang, conditions)
    text = f"{_what(one)} ({', '.join(_measures(one, hang, times))})"
    condition = conditions.get(one.rank or 0, Condition())
    if condition.state in _STATES:
        text += f"; its process is {_STATES[condition.state]}"
    if condition.where:
        text += f"; it stands in {condition.where}"
    waiting = [str(o.rank) for o in hang.standings if o.rank != one.rank and o.step == one.step]
    if waiting:
        text += f"; rank{'s' * (len(waiting) > 1)} {', '.join(waiting)} waited with it"
    return one, text


def _what(one: Standing) -> str:
    spent = _time(one.seconds)
    if one.rank is None:
        return f"no rank has attached {spent} after the start"
    if one.gone:
        return f"the process of rank {one.rank} is gone since step {one.step}, others wait {spent}"
    if one.span == "step":
        return f"rank {one.rank} made no step for {spent} after step {one.step}"
    return f"rank {one.rank} has stood in {one.span} for {spent}, at step {one.step}"


def _measures(one: Standing, hang: Hang, times: Times) -> list[str]:
    limit, measured = hang.limit, times.of(one.span)
    found = [f"limit of {hang.standing.span} {_time(limit.seconds)}, {_WHY[limit.why]}"]
    if measured is not None and one.rank is not None:
        found.append(f"median {one.span} {_time(measured.median)}")
    return found


_WHY = {
    "set": "as set",
    "learned": "as learned",
    "floor": "the least there is",
    "gone": "for a process that is gone",
}


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
