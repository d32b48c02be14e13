"""The last thing that a saver does: offer the capture that it voted for to the next attempt.

Owns sealing the memory, proving that it still is what was voted for, and when the offer ends. All
that is durable is done before; whoever takes the offer ends this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as Many

from blake3 import blake3

from walrecover import entries as model
from walrecover.arena.layout import Header, Row
from walrecover.arena.memory import Arena, Sealed
from walrecover.arena.slots import view
from walrecover.commits import Attempt
from walrecover.entries import Entry
from walrecover.errors import Corrupt, WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.processes import die_with_parent, identity
from walrecover.rundir import RunDir
from walrecover.saver.messages import Assignment
from walrecover.saver.offers import Offer, say
from walrecover.saver.trainer import Trainer
from walrecover.sequence import Sequence

OFFERED_SECONDS = 60.0
"""For the next attempt to come to its restore. The memory is its machine's meanwhile."""

LOOK_SECONDS = 0.1


def offer(
    run: RunDir, given: Assignment, arena: Arena, trainer: Trainer, slot: int, header: Header
) -> None:
    """Returns when nobody will take it any more; who does ends this process. Nothing else in it
    may use the arena."""
    if os.getppid() != given.supervisor:
        return  # it is gone, or another process keeps orphans here: nobody would end this one
    die_with_parent(given.supervisor)
    meeting = run.meeting(given.attempt, given.nonce)
    mine = identity()
    say(meeting, given.rank, Offer(mine))
    failpoint("saver.settled")
    ends = time.monotonic() + OFFERED_SECONDS
    if not trainer.ends_within(OFFERED_SECONDS):
        return
    try:
        arena.seal(slot)
        _require_same(Sealed(arena.fd, slot), header)
    except (Corrupt, OSError) as error:
        say(meeting, given.rank, Offer(mine, refused=str(error)))
        return
    say(meeting, given.rank, Offer(mine, arena.fd, slot))
    sequence = Sequence(run.sequence)
    attempt = Attempt(given.attempt, given.nonce, given.world)
    while _is_wanted(sequence, attempt):
        if time.monotonic() > ends:
            late = f"it was offered for {OFFERED_SECONDS:g} s, and nobody came"
            say(meeting, given.rank, Offer(mine, refused=late))
            return
        time.sleep(LOOK_SECONDS)


def _require_same(sealed: Sealed, header: Header) -> None:
    """Raises Corrupt where it is not what was voted for."""
    if not sealed.slot.is_still(header):
        raise Corrupt("its slot does not hold what was voted for")
    _, rows = sealed.slot.job(header)
    known = sealed.slot.digests(header)
    if known is None:
        raise Corrupt("its slot has no digests")
    base = sealed.slot.data_address(header)
    if _digests(base, rows) != known:
        raise Corrupt("its bytes are not those that were voted for")


def _digests(base: int, rows: Many[Row]) -> list[bytes]:
    """With all processors: nobody else in this attempt needs them any more."""
    seen: dict[tuple[int, int], bytes] = {}
    for row in rows:
        place = (row.offset, row.nbytes)
        if place not in seen:
            data = view(base + row.offset, row.nbytes)
            seen[place] = bytes(blake3(data, max_threads=blake3.AUTO).digest())
    return [seen[row.offset, row.nbytes] for row in rows]


def _is_wanted(sequence: Sequence, attempt: Attempt) -> bool:
    try:
        return is_wanted(sequence.read(), attempt)
    except (WalrecoverError, OSError):
        return False


def is_wanted(found: list[Entry], attempt: Attempt) -> bool:
    """Whether an attempt behind this one may still come, or the newest goes on from here."""
    newest = model.newest_attempt(found)
    if newest is None:
        return False
    base = newest.plan.base
    return attempt.nonce in (newest.nonce, base.nonce if base else None)
