"""Which pass over a loader begins: counted from the run's beginning, over all its attempts.

Owns how a loader is known again. In one process it is known by its dataset, so that a loader that
the script makes anew for every epoch is the same one; in a resumed process by the loop that it was
last read in, and by what it looks like. The order of the samples and the workers' randomness depend
on the pass, so passes without a step count, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from walrecover.session.position import Count
from walrecover.torch_adapter import loaders
from walrecover.torch_adapter.keyed import Pass

Path = tuple[int, ...]


class Keys(NamedTuple):
    """What the workers' randomness depends on besides the pass. `seed`: of the run, from the
    beginning of its first attempt. `keyed` False leaves workers to themselves."""

    seed: int
    rank: int = 0
    keyed: bool = True

    def pass_of(self, number: int, epoch: int, skips: tuple[tuple[int, int], ...] = ()) -> Pass:
        return Pass(self.seed if self.keyed else None, number, epoch, self.rank, skips)


class Passes:
    """The loaders of a run. `counts`: by their number; it is replaced, never changed."""

    def __init__(self) -> None:
        self.counts: tuple[Count, ...] = ()
        self._met: dict[int, weakref.ref[Any] | None] = {}

    def begin(self, place: Path, loader: Any, busy: Collection[int] = ()) -> tuple[int, int]:
        """A pass begins. `busy`: loaders that are being read. Returns the loader's number, and how
        many passes were before."""
        look, data = loaders.look(loader), loaders.identity(loader)
        number = self._find(place, look, data, busy)
        if number is None:
            number = len(self.counts)
            self.counts += (Count(look, place, 0, place),)
        count = self.counts[number]
        self._met[number] = _reference(data)
        self._set(number, count._replace(place=place, passes=count.passes + 1))
        return number, count.passes

    def know(self, counts: Sequence[Count]) -> None:
        """Loaders of an earlier attempt, by which those of this one are numbered."""
        self.counts = tuple(count._replace(passes=0) for count in counts)

    def keep(self, counts: Sequence[Count]) -> None:
        """Go on from what was counted at a place. Loaders that had not been read there have been
        in no pass."""
        later = self.counts[len(counts) :]
        self.counts = (*counts, *(count._replace(passes=0) for count in later))

    def _set(self, number: int, count: Count) -> None:
        self.counts = (*self.counts[:number], count, *self.counts[number + 1 :])

    def _find(self, place: Path, look: str, data: Any, busy: Collection[int]) -> int | None:
        alike = [
            number
            for number, count in enumerate(self.counts)
            if count.look == look and number not in busy
        ]
        for number in alike:
            if data is not None and self._dataset(number) is data:
                return number
        for number in alike:
            if self.counts[number].place == place:
                return number
        for number in alike:
            if number not in self._met or _both_at_the_top(place, self.counts[number].place):
                return number
        return None

    def _dataset(self, number: int) -> Any:
        """The dataset of a loader that was met in this process, while it is alive."""
        reference = self._met.get(number)
        return None if reference is None else reference()


def _both_at_the_top(place: Path, other: Path) -> bool:
    """A loop at the top level is another one each time it is begun."""
    return len(place) == len(other) == 2 and place[1] == other[1]


def _reference(data: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(data)
    except TypeError:  # a list
        return None
