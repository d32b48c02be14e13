"""Copying a state into a slot: the whole stall of a capture.

Owns the plan of a copy, kept while the layout stays the same, and the copy itself. Where the state
comes from is the caller's; it must not change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from walrecover import parallel
from walrecover.arena import layout
from walrecover.arena.layout import Described, Header, Layout, choose, lay_out
from walrecover.arena.memory import Arena
from walrecover.arena.slots import Slot, encode_job
from walrecover.shards import TensorData


class _Plan(NamedTuple):
    """`signature`: what makes two states have the same layout."""

    signature: tuple[Any, ...]
    layout: Layout


class Begun(NamedTuple):
    """A slot that is being filled: `moves` says which bytes go where."""

    slot: Slot
    header: Header
    moves: list[tuple[int, TensorData]]


class Filling:
    """One rank's captures into an arena. `rank`: of them only the first writes what all share."""

    def __init__(self, arena: Arena, rank: int) -> None:
        self._arena, self._rank = arena, rank
        self._plan: _Plan | None = None
        self._generation = 0
        self._begun: set[int] = set()

    def layout_of(self, tensors: Mapping[str, TensorData], shared: frozenset[str]) -> Layout:
        """Where these tensors go; the one from before where nothing but bytes has changed."""
        places: dict[int, int] = {}
        signature = (
            *(
                (name, t.dtype, t.shape, t.nbytes, places.setdefault(t.address, number))
                for number, (name, t) in enumerate(tensors.items())
            ),
            shared,
        )
        if self._plan is None or self._plan.signature != signature:
            described = [
                Described(
                    name,
                    t.dtype,
                    t.shape,
                    t.nbytes,
                    t.address,
                    name in shared,
                    self._rank == 0 or name not in shared,
                )
                for name, t in tensors.items()
            ]
            self._plan = _Plan(signature, lay_out(described))
        return self._plan.layout

    def free_slot(self, *, saver_lives: bool) -> Slot | None:
        """The slot for the next capture; None while all are held."""
        slots = (slot for slot in self._arena.slots if slot.number not in self._begun)
        seen = [slot.seen() for slot in slots]
        number = choose(seen, saver_lives=saver_lives)
        return None if number is None else self._arena.slots[number]

    def fill(
        self,
        slot: Slot,
        tensors: Mapping[str, TensorData],
        shared: frozenset[str],
        fields: dict[str, Any],
        tree: Any,
        *,
        wanted: bool,
    ) -> Header:
        """Copy a state that lies in host memory. Arguments and errors as of `begin`."""
        begun = self.begin(slot, tensors, shared, fields, tree, wanted=wanted)
        try:
            copy(begun.moves)
        except BaseException:  # a KeyboardInterrupt between two pieces
            self.give_up(begun)
            raise
        self.complete(begun)
        return begun.header

    def begin(
        self,
        slot: Slot,
        tensors: Mapping[str, TensorData],
        shared: frozenset[str],
        fields: dict[str, Any],
        tree: Any,
        *,
        wanted: bool,
    ) -> Begun:
        """Everything but the tensors' bytes. `fields`: those of `slots.Job`, without tree and
        table. Raises TooLarge, and then the slot still holds what it held."""
        placed = self.layout_of(tensors, shared)
        job = encode_job(fields, tree, placed)
        header = Header(
            generation=self._generation + 1,
            step=fields["step"],
            end=fields["end"],
            wanted=wanted,
            rows=len(placed.rows),
            job_bytes=len(job),
            job_seal=layout.seal(job),
            data_bytes=placed.data_bytes,
            layout=placed.digest,
        )
        base = slot.begin(header)
        self._begun.add(slot.number)
        self._generation += 1
        slot.put_job(job)
        moves = {
            row.offset: (base + row.offset, tensor)
            for row, tensor in zip(placed.rows, tensors.values(), strict=True)
            if row.nbytes
        }
        return Begun(slot, header, list(moves.values()))

    def complete(self, begun: Begun) -> None:
        """All of it is in its place."""
        begun.slot.complete(begun.header)
        self._begun.discard(begun.slot.number)

    def give_up(self, begun: Begun) -> None:
        """It will not be: the slot holds nothing."""
        self._begun.discard(begun.slot.number)


def copy(moves: Iterable[tuple[int, TensorData]]) -> None:
    """What lies in host memory, to where it goes."""
    parallel.copy((to, tensor.address, tensor.nbytes) for to, tensor in moves)
