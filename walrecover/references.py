"""What a rank's votes reference: the choice of `reuse`, over what the sequence and rank 0 say.

Owns reading that from the run's files, and rank 0's word that files are not to be referenced again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial

from walrecover import entries as model
from walrecover import snapshot
from walrecover.entries import Entry
from walrecover.errors import WalrecoverError
from walrecover.files import make_directory
from walrecover.manifest import Part
from walrecover.reuse import Offer, Past
from walrecover.rundir import RunDir

log = logging.getLogger("walrecover")


class References:
    """One rank's, in one attempt. `base`: its part of the plan's base (see `base_of`)."""

    def __init__(self, run: RunDir, number: int, nonce: str, base: Part | None) -> None:
        self._word = partial(snapshot.distrusted, run, number, nonce)
        self._nonce = nonce
        self._past = Past(base)

    def cast(self, part: Part) -> None:
        self._past.cast(part)

    def committed(self, captures: Collection[tuple[int, bool]]) -> None:
        """These captures of this attempt are."""
        if captures:
            self._past.committed(captures)

    def look(self, entries: Sequence[Entry]) -> None:
        """Take from the sequence which are."""
        own = [c.snapshot for c in model.commits(entries) if c.snapshot.nonce == self._nonce]
        self.committed([(ref.step, ref.end) for ref in own])

    def offers(self) -> dict[str, Offer]:
        """For the next vote."""
        for name in self._past.names():
            if self._word(name).exists():
                self._past.distrust(name)
        return self._past.offers()


def base_of(
    run: RunDir, entries: Sequence[Entry], nonce: str, rank: int, world: int
) -> Part | None:
    """A rank's part of what its attempt goes on from: its last commit, or else the plan's base.
    None where there is none, another number of ranks made it, or it cannot be read."""
    plans = [entry.plan.base for entry in model.attempts(entries) if entry.nonce == nonce]
    own = [c.snapshot for c in model.commits(entries) if c.snapshot.nonce == nonce]
    ref = own[-1] if own else plans[-1] if plans else None
    if ref is None:
        return None
    try:
        parts = snapshot.load_manifest(run, ref).parts
    except (WalrecoverError, OSError):
        return None
    return parts[rank] if len(parts) == world else None


def distrust(run: RunDir, number: int, nonce: str, name: str) -> None:
    """Tell every rank that no file which this capture lists is to be referenced again. Where that
    cannot be said, snapshots go on being refused, or not reading back."""
    try:
        make_directory(run.meeting(number, nonce))
        snapshot.distrusted(run, number, nonce, name).touch()
    except OSError as error:
        log.warning("the ranks were not told to write anew: %s", error)
