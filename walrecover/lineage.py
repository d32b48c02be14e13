"""Where a run's history was made: attempt by attempt, over forks, back to its beginning.

Owns the walk; what an entry means is `entries`', what the steps say is in the streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from walrecover import entries as model
from walrecover.entries import Ancestor, AttemptEntry, Entry, SnapshotRef


def history(
    run: str, entries: Sequence[Entry], upto: SnapshotRef | None = None
) -> tuple[Ancestor, ...]:
    """The attempts that made the surviving history, newest first, each with the steps that count.

    `upto`: only the history behind this snapshot, which must lie on the chain. The newest attempt
    is open (`cut` None) without it. Attempts of a fork's parents follow the fork's own.
    """
    found: list[Ancestor] = []
    first = model.origin(entries)
    taken = upto is None
    for link in model.chain(entries):
        cut = link.cut
        if upto is not None and (link.attempt, link.nonce) == (upto.attempt, upto.nonce):
            taken, cut = True, upto.step
        if taken:
            found.append(Ancestor(run, link.attempt, link.nonce, link.base, cut))
    if first is not None and _goes_back_to(entries, first.snapshot):
        found += first.history
    return tuple(found)


def _goes_back_to(entries: Sequence[Entry], snapshot: SnapshotRef) -> bool:
    """Whether the chain ends at this snapshot: not where the run has started over since."""
    by_nonce = {(one.number, one.nonce): one for one in model.attempts(entries)}
    links = model.chain(entries)
    if not links:
        return True
    oldest = by_nonce[links[-1].attempt, links[-1].nonce]
    return oldest.plan.base == snapshot


def superseded_from(entries: Sequence[Entry], mine: AttemptEntry) -> int | None:
    """The first step of this attempt that one before it may have made: what somebody logged of it
    and of later steps is superseded. None for a run's first attempt.

    It is the step behind the base even where the journal knows of none: a logger may have written
    a step of which the journal was not told any more.
    """
    if next((one for one in model.attempts(entries)), mine) == mine:
        return None  # a fork's, too: what its parent logged stays
    return mine.plan.base.step + 1 if mine.plan.base else 1


def worlds_between(entries: Sequence[Entry], older: int, newer: int) -> frozenset[int]:
    """How many ranks made what lies between two attempts and the last state that both go back to.

    Two attempts from the same base have nothing between them. A plan says how many ranks saved its
    base; one that does not (0) counts for nothing.
    """
    known = {one.number: one for one in model.attempts(entries)}
    if older not in known or newer not in known:
        return frozenset()
    ways = [_back(known, older), _back(known, newer)]
    common = next((one for one in ways[1] if one in ways[0]), None)
    ends: list[AttemptEntry] = []
    worlds: set[int] = set()
    for way in ways:
        own = way[: way.index(common)] if common in way else way
        worlds |= {known[number].plan.ranks for number in own[:-1]}
        ends += [known[number] for number in own[-1:]]
    if len(ends) < 2 or ends[0].plan.base != ends[1].plan.base:
        worlds |= {end.plan.ranks for end in ends}
    return frozenset(worlds - {0})


def _back(known: dict[int, AttemptEntry], number: int) -> list[int]:
    """An attempt, its base's attempt, that one's base's, and so on."""
    way = [number]
    while (base := known[way[-1]].plan.base) and base.attempt in known and base.attempt not in way:
        way.append(base.attempt)
    return way
