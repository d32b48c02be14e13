"""How strong a verdict on a resume can be: its tier, why, and what is compared in it.

Pure. `exact` compares bits and needs the same world, machine and versions, and kernels that give
the same bits twice. `tolerant` says what is not so, compares what does not depend on it exactly,
and numbers that do within a bound. `none` has nothing to compare. They are never mixed up: what
could have been tolerant only is not called exact because the bits happened to be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from walrecover.events import Code
from walrecover.twins import ALL

Tier = Literal["exact", "tolerant", "none"]

BOUND = 0.01
"""Of losses and other scalars, relative to the larger one: rounding moves a training that is stable
less than this over the steps between two snapshots; a wrong learning rate, state or batch mostly
more. It is a bound of what is called the same, not of what kernels may do."""

OWN_WORKERS = "loaders' workers draw by themselves (WALRECOVER_WORKER_SEEDS=own)"
"""Then batches come back other than they were, and with them the losses."""

_SAME = ("python", "threads", "cpu")
_LIBRARIES = ("torch", "numpy")
_SCALED = frozenset({"position", "lr"})
"""What is compared over a changed world, bit for bit: a rank's batch, loss and generators are other
ones there. Which samples the steps consumed is the ledger's to prove."""


class Ground(NamedTuple):
    """What a comparison stands on."""

    tier: Tier
    why: tuple[str, ...] = ()
    bound: float = 0.0
    compared: frozenset[str] = ALL
    states: bool = True


EXACT = Ground("exact")


def ground(
    before: Code | None,
    after: Code | None,
    more: Sequence[str] = (),
    worlds: Iterable[int] = (),
) -> Ground:
    """What two attempts have in common. `more`: further reasons why bits may differ. `worlds`:
    how many ranks made what lies between them (`lineage.worlds_between`)."""
    if before is None or after is None:
        return Ground("exact", compared=ALL) if not more else _tolerant(tuple(more))
    if before.world != after.world:
        why = (f"world size was {before.world}, is {after.world}", *more)
        return Ground("tolerant", why, 0.0, _SCALED, states=False)
    if others := sorted(set(worlds) - {after.world}):
        said = ", ".join(map(str, others))
        why = (f"world size was {said} in between, is {after.world}", *more)
        return Ground("tolerant", why, 0.0, _SCALED, states=False)
    why = tuple(_changes(before, after)) + tuple(dict.fromkeys((*before.inexact, *after.inexact)))
    return _tolerant((*why, *more)) if why or more else EXACT


def _tolerant(why: tuple[str, ...]) -> Ground:
    compared = ALL - {"batch", "scalars"} if OWN_WORKERS in why else ALL
    return Ground("tolerant", why, BOUND if "scalars" in compared else 0.0, compared, states=False)


def _changes(before: Code, after: Code) -> list[str]:
    found = [
        f"{name} was {getattr(before, name) or 'unknown'}, is {getattr(after, name) or 'unknown'}"
        for name in _SAME
        if getattr(before, name) != getattr(after, name)
    ]
    for name in _LIBRARIES:
        old, new = before.libraries.get(name), after.libraries.get(name)
        if old != new:
            found.append(f"{name} was {old or 'not there'}, is {new or 'not there'}")
    return found
