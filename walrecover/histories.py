"""Two histories, step by step: the first step at which they differ, and in what.

Pure: the events come through arguments. How two executions of a step compare is `twins`'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from walrecover.entries import Ancestor
from walrecover.events import ScalarsArrived, ShardsWritten, StepCompleted
from walrecover.twins import (
    Difference,
    Facts,
    differences,
    facts_of,
    objects_that_differ,
    with_scalars,
)

BEHIND = 64
"""Steps behind a step until which its late scalars, or its state, have been journaled."""


class Step(NamedTuple):
    """What a history says of a step. `state`: digests by object, where it was captured."""

    step: int
    facts: Facts
    state: Mapping[str, bytes]


class Parting(NamedTuple):
    """The step at which two histories part, and in what, causes first. `compared`: how many steps
    of the rank they have in common before it."""

    step: int
    rank: int
    found: tuple[Difference, ...]


class Outcome(NamedTuple):
    """`last`: the last step that both have, 0 for none; `compared`: how many both have."""

    parting: Parting | None
    compared: int
    last: int


def shared(one: Iterable[Ancestor], other: Iterable[Ancestor]) -> int:
    """Through which step both histories are the same ones, attempt for attempt (a fork's and its
    parent's); 0 where they have nothing in common. Both newest first."""
    through = 0
    for mine, its in zip(reversed(list(one)), reversed(list(other)), strict=False):
        if (mine.run, mine.attempt, mine.nonce) != (its.run, its.attempt, its.nonce):
            break
        cuts = [cut for cut in (mine.cut, its.cut) if cut is not None]
        through = min(cuts, default=0)
        if mine.cut != its.cut:
            break
    return through


def steps(events: Iterable[tuple[Any, Any]]) -> Iterator[Step]:
    """The steps of one rank's history; `events`: (which attempt, event), in order."""
    waiting: deque[Step] = deque()
    attempt: Any = None
    for whose, event in events:
        if isinstance(event, StepCompleted):
            opening = whose != attempt
            attempt = whose
            waiting.append(Step(event.step, facts_of(event, opening=opening), {}))
            if len(waiting) > BEHIND:
                yield waiting.popleft()
        elif isinstance(event, ScalarsArrived):
            _amend(waiting, event.step, lambda one, e=event: one._replace(
                facts=with_scalars(one.facts, e.scalars)
            ))  # fmt: skip
        elif isinstance(event, ShardsWritten) and event.state and not event.end:
            _amend(waiting, event.step, lambda one, e=event: one._replace(state=e.state))
    yield from waiting


def _amend(waiting: deque[Step], step: int, change: Any) -> None:
    for place, one in enumerate(waiting):
        if one.step == step:
            waiting[place] = change(one)
            return


def compare(rank: int, one: Iterable[Step], other: Iterable[Step]) -> Outcome:
    """Rank by rank: the first step that both have and that differs."""
    pairs = _pairs(one, other)
    ahead = list(islice(pairs, BEHIND))
    used = {name for pair in ahead for each in pair for name in _moved(each)}
    count = last = 0
    for mine, its in _chained(ahead, pairs):
        used |= {*_moved(mine), *_moved(its)}
        found = tuple(differences(mine.facts, its.facts, used))
        found += tuple(objects_that_differ(mine.state, its.state))
        if found:
            return Outcome(Parting(mine.step, rank, found), count, mine.step)
        count, last = count + 1, mine.step
    return Outcome(None, count, last)


def _chained(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest


def _moved(one: Step) -> tuple[str, ...]:
    return () if one.facts.opening else tuple(one.facts.rng)


def _pairs(one: Iterable[Step], other: Iterable[Step]) -> Iterator[tuple[Step, Step]]:
    """The steps that both have."""
    left, right = iter(one), iter(other)
    mine, its = next(left, None), next(right, None)
    while mine is not None and its is not None:
        if mine.step < its.step:
            mine = next(left, None)
        elif its.step < mine.step:
            its = next(right, None)
        else:
            yield mine, its
            mine, its = next(left, None), next(right, None)
