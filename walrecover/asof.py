"""What a run knew when a step was completed: its folded state, cut there.

Owns the cut. No clock: of the surviving history the attempt that made the step is taken up to it,
the attempts before it whole, those after it not at all.
"""

from __future__ import annotations

import msgspec

from walrecover import entries as model
from walrecover.entries import AttemptEntry, CommitEntry, Entry
from walrecover.errors import BadInput
from walrecover.state import RunState, StreamRecord


def as_of(state: RunState, step: int, run: str) -> RunState:
    """The state at this step; all of it where the run has not come so far.

    Raises BadInput for a step that a fork has from its parent.
    """
    first = model.origin(state.entries)
    if first is not None and step < first.snapshot.step and _goes_back(state):
        raise BadInput(
            f"step {step} was made by run {first.parent}, from which {run} was forked at step "
            f"{first.snapshot.step}: ask there"
        )
    maker = _maker(state, step)
    if maker is None:
        return state
    reached = state.completed(maker.number, maker.nonce)
    entries = _cut(state.entries, maker, step)
    known = {(one.number, one.nonce) for one in model.attempts(entries)}
    mine = (maker.number, maker.nonce)
    records = {
        key: _until(record, step) if key[:2] == mine and reached > step else record
        for key, record in state.records.items()
        if (key.attempt, key.nonce) in known
    }
    return RunState(entries, records, state.imported)


def _goes_back(state: RunState) -> bool:
    """Whether the history still begins with the fork's origin."""
    links = state.chain
    return not links or links[-1].base > 0


def _maker(state: RunState, step: int) -> AttemptEntry | None:
    """The attempt of the surviving history that made the step; the first one for step 0."""
    by_nonce = {(one.number, one.nonce): one for one in model.attempts(state.entries)}
    links = [link for link, _ in state.surviving()]
    for link in links:
        if link.holds(step) or (link is links[0] and step <= link.base):
            return by_nonce[link.attempt, link.nonce]
    return None


def _cut(entries: tuple[Entry, ...], maker: AttemptEntry, step: int) -> tuple[Entry, ...]:
    """Up to the first decision that came behind the step."""
    begun = entries.index(maker)
    for place, entry in enumerate(entries[begun + 1 :], begun + 1):
        later = isinstance(entry, CommitEntry) and entry.snapshot.step > step
        if later or isinstance(entry, AttemptEntry):
            return entries[:place]
    return entries


def _until(record: StreamRecord, step: int) -> StreamRecord:
    """A stream of the attempt that made the step and went on: how it ended is not known yet."""
    return msgspec.structs.replace(
        record,
        steps=[[first, min(last, step)] for first, last in record.steps if first <= step],
        exited=[],
        raised=[event for event in record.raised if event.step < step],
        salvaged=[],
        decided=[],
        hangs=[event for event in record.hangs if event.step < step],
        abandoned=[event for event in record.abandoned if event.step <= step],
        stopped=None,
        finished=None,
    )
