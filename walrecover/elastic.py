"""A state that some ranks saved, dealt out to another number of them: what goes to whom.

Pure. Owns what counts as the same on all ranks, what each new rank is given, what is drawn anew for
it, and the refusal of what is one rank's own. Every new rank decides from all that was saved, so
that all come to the same end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from walrecover.errors import Mismatch
from walrecover.values import first_difference

GENERATORS = ("torch generator", "python generator", "numpy generator")
"""Kinds of attached objects that are random generators."""

GLOBAL, NUMBERS, LOADER, STATE, OPAQUE = "global", "numbers", "loader", "state", "opaque"
"""How a loop reads an iterable: in the global order, by item numbers, by a sampler of the rank's
own, by the iterable's own state, or again from its beginning."""

_OF_ALL = (GLOBAL, NUMBERS)
_REASONS = 5


class Tensor(msgspec.Struct, frozen=True):
    """A tensor without its bytes."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} {self.digest[7:15]}"


class Reads(NamedTuple):
    """How a loop reads one of its iterables, and what that is, for people."""

    how: str
    what: str


class Where(NamedTuple):
    """One loop of a position: items handed out, how many there are, what it reads."""

    consumed: int
    length: int | None
    reads: tuple[Reads, ...]

    @property
    def ended(self) -> bool:
        return self.length is not None and self.consumed >= self.length


class Saved(NamedTuple):
    """What one rank saved. `objects`: the state of each attached object, its tensors as `Tensor`.

    `led`: modules whose buffers are rank 0's on every rank, because DDP hands them out before each
    forward. `rng`: the global generators' states. `places`: its loops, outermost first.
    """

    objects: Mapping[str, Any]
    kinds: Mapping[str, str]
    led: frozenset[str]
    rng: Mapping[str, Any]
    places: tuple[Where, ...]


class Deal(NamedTuple):
    """What a new rank is given. `source`: the saved rank whose values and position it takes.

    `of_first`: modules whose buffers it takes from rank 0. `seeds`: for each global generator that
    is drawn anew, and `object_seeds` for each attached one. `ended`: the innermost loop had handed
    out all of its items, and is not to be entered again.
    """

    source: int
    of_first: frozenset[str]
    seeds: Mapping[str, int]
    object_seeds: Mapping[str, int]
    ended: bool

    def said(self, before: int, now: int) -> str:
        """For people: what is not as it was."""
        text = f"{_ranks(before)} saved, {_ranks(now)} go{'es' if now == 1 else ''} on"
        anew = [*self.seeds, *self.object_seeds]
        if anew:
            text += f"; drawn anew on each rank: {', '.join(anew)}"
        if self.of_first:
            names = ", ".join(sorted(self.of_first))
            text += f"; the buffers of {names} are rank 0's, as DDP has it"
        return text


def source_of(rank: int, saved: int) -> int:
    """The saved rank that a new rank takes after. Ranks beyond the saved ones begin at 0 again."""
    return rank % saved


def seed(run: str, snapshot: str, rank: int, generator: str) -> int:
    """64 bits for a generator of a new rank. The attempt's number has no part in it, so that a
    resume that fails and is tried again draws the same."""
    text = "\0".join(("walrecover elastic", run, snapshot, str(rank), generator))
    return int.from_bytes(blake3(text.encode()).digest()[:8], "little")


def deal(
    saved: Sequence[Saved],
    rank: int,
    world: int,
    *,
    run: str,
    snapshot: str,
    taken: frozenset[str] = frozenset(),
) -> Deal:
    """What rank `rank` of `world` gets of what `saved` ranks left. `snapshot`: the digest of its
    manifest. `taken`: objects that every rank takes from one, by order of a person.

    Raises Mismatch naming what is one rank's own.
    """
    own = {name: reason for name, reason in _own_values(saved) if name not in taken}
    loops = list(_own_loops(saved[0].places))
    if own or loops:
        raise Mismatch(_refusal(len(saved), world, own, loops))

    def seeds(names: list[str]) -> dict[str, int]:
        return {name: seed(run, snapshot, rank, name) for name in names}

    led = frozenset(name for one in saved for name in one.led)
    return Deal(
        source=source_of(rank, len(saved)),
        of_first=led if len(saved) > 1 else frozenset(),
        seeds=seeds(_moved_apart([one.rng for one in saved])),
        object_seeds=seeds([n for n in _own_generators(saved) if n not in taken]),
        ended=bool(saved[0].places) and not _is_of_all(saved[0].places[-1]),
    )


def _moved_apart(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Global generators to be drawn anew: all where one rank saved, for nothing tells whether
    others would draw as it does; else those that were not the same on every rank."""
    names = list(dict.fromkeys(name for one in states for name in one))
    if len(states) == 1:
        return names
    first = states[0]
    return [n for n in names if any(one.get(n) != first.get(n) for one in states)]


def _own_generators(saved: Sequence[Saved]) -> list[str]:
    """Attached generators that were not the same on every rank. Where one rank saved, what is
    attached is taken for the state of all."""
    first = saved[0]
    return [
        name
        for name, kind in first.kinds.items()
        if kind in GENERATORS
        and any(one.objects.get(name) != first.objects[name] for one in saved[1:])
    ]


def _own_values(saved: Sequence[Saved]) -> Iterator[tuple[str, str]]:
    """Each object that is not the same on every rank, and where it differs first."""
    first = saved[0]
    for name in dict.fromkeys(name for one in saved for name in one.objects):
        if first.kinds.get(name) in GENERATORS:
            continue
        for rank, one in enumerate(saved):
            if name not in one.objects or name not in first.objects:
                lacks = rank if name not in one.objects else 0
                yield name, f"{name}, which rank {lacks} has not"
                break
            mine, its = (_followed(saved[n].objects[name], name in one.led) for n in (0, rank))
            if found := first_difference(mine, its, name):
                where, a, b = found
                yield name, f"{where} ({a} on rank 0, {b} on rank {rank})"
                break


def _followed(state: Any, led: bool) -> Any:
    """What must agree of an object: not the bytes of buffers that rank 0 hands out. A module's
    parameters are told from its buffers by the votes, which hold them to be alike."""
    if not led or not isinstance(state, Mapping):
        return state
    return {
        key: (value.dtype, value.shape) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def _is_of_all(place: Where) -> bool:
    return all(reads.how in _OF_ALL for reads in place.reads)


def _own_loops(places: Sequence[Where]) -> Iterator[str]:
    """Loops that stand in the middle of what only one rank reads."""
    for depth, place in enumerate(places):
        innermost = depth == len(places) - 1
        if _is_of_all(place) or (innermost and place.ended):
            continue
        for reads in place.reads:
            if reads.how not in _OF_ALL:
                of = "" if place.length is None else f" of {place.length}"
                yield f"{reads.what} stands at item {place.consumed}{of}"


def _refusal(saved: int, world: int, own: Mapping[str, str], loops: Sequence[str]) -> str:
    text = f"the snapshot was taken by {_ranks(saved)}, and there are {world} now"
    ways = [f"start {_ranks(saved)} as before"]
    if own:
        shown = [*own.values()][:_REASONS]
        more = f" and {len(own) - _REASONS} more" if len(own) > _REASONS else ""
        text += f": each rank has its own {'; '.join(shown)}{more}"
        ways.append(
            f"give every rank what rank 0 has of {'it' if len(own) == 1 else 'them'}, "
            f"WALRECOVER_TAKE_RANK=0:{','.join(own)}"
        )
    if loops:
        text += f"{'; and' if own else ':'} each rank reads its own: {'; '.join(loops)}"
        ways.append(
            "let all ranks read by walrecover.data.GlobalBatchSampler, whose position is that of "
            "all of them"
        )
    return f"{text}. Either {'; or '.join(ways)}"


def unlike(before: Reads, now: Reads, then: int | None, length: int | None) -> str | None:
    """Why a loop cannot be come back to by another number of ranks, or None. `then`, `length`: how
    many items it had, and has."""
    if before.how == GLOBAL and now.how != GLOBAL:
        return f"the loop went by the global order, and goes over {now.what} now"
    if before.how == NUMBERS and now.how != NUMBERS:
        return f"the loop went over {before.what}, and goes over {now.what} now"
    counts = before.how == GLOBAL or now.what != "range"  # a range may grow: more epochs
    if counts and None not in (then, length) and then != length:
        return (
            f"the loop over {now.what} had {then} items, and has {length} with another number of "
            f"ranks: what it goes over is not the same on all ranks"
        )
    return None


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


__all__ = [
    "GENERATORS",
    "GLOBAL",
    "LOADER",
    "NUMBERS",
    "OPAQUE",
    "STATE",
    "Deal",
    "Reads",
    "Saved",
    "Tensor",
    "Where",
    "deal",
    "seed",
    "source_of",
    "unlike",
]
