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
