"""A rank's whole state at a boundary, and the capture that it makes.

Owns the parts of a state and their order: objects, position, then the random generators, since
the objects' own code may draw from them. Where the state comes from (living, or kept) is the
caller's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from walrecover import plain
from walrecover.commits import Key
from walrecover.entries import AttemptEntry
from walrecover.manifest import digest_of
from walrecover.session.position import Position
from walrecover.session.restoring import position_tree
from walrecover.snapshot import Capture
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.objects import Attached, State
from walrecover.torch_adapter.ranks import World


class Moment(NamedTuple):
    """`places`: the position's wire form; `counts`: what all ranks must have in common of it."""

    state: State
    places: Any
    counts: list[list[int]]
    rng: dict[str, Any]


def living(attached: Attached, position: Position) -> Moment:
    """The state now. What lies on a device stays there."""
    state = attached.capture(far=True)
    return Moment(state, position_tree(position), counts(position), rng.capture())


def counts(position: Position) -> list[list[int]]:
    return [[place.ordinal, place.consumed] for place in position.places]


class Captures:
    """What makes moments of one rank's attempt into captures."""

    def __init__(self, run: str, entry: AttemptEntry, ranks: World, code: Any) -> None:
        self._run, self._entry, self._ranks, self._code = run, entry, ranks, code

    def of(self, key: Key, moment: Moment, events_after: int) -> Capture:
        base = self._entry.plan.base
        return Capture(
            run=self._run,
            step=key.step,
            end=key.end,
            attempt=self._entry.number,
            nonce=self._entry.nonce,
            rank=self._ranks.rank,
            world=self._ranks.size,
            base=base.manifest if base else "",
            position=digest_of(plain.encode(moment.counts)),
            tensors=moment.state.tensors,
            shared=moment.state.shared,
            tree={
                "objects": moment.state.tree,
                "rng": plain.to_tree(moment.rng, "rng"),
                "position": moment.places,
                "step": key.step,
                "code": self._code,
            },
            writer=f"rank-{self._ranks.rank}",
            events_after=events_after,
        )
