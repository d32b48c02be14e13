"""What loops read from: how an iterable is begun, and how it is brought back to a position.

Owns one loop's iterables, their iterators and the random generators of their own. When a loop is
read, and what a position is made of, is `loops`'.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from walrecover import elastic
from walrecover.elastic import Reads
from walrecover.errors import Corrupt, NotRestored
from walrecover.torch_adapter import loaders, rng, sharded
from walrecover.torch_adapter.memory import is_array_or_tensor

Path = tuple[int, ...]


class Source:
    """One iterable of a loop, being read.

    `begun`: its generators' states when the loop began. `first`: the random state before its first
    item, where other iterables of the loop are read before it. `before`: its own state
    (`state_dict`) before the current item; `holder` has it. `this`: which pass over a loader or
    sharded dataset it is (`counted`), `home`: the loop in which that was first read; set before it
    begins.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.iterator: Iterator[Any] = iter(())
        self.reads = _reads(value)
        self._kept_reads = tuple(self.reads)
        self.is_loader = loaders.is_loader(value)
        self.generators = loaders.generators(value) if self.is_loader else []
        self.begun = _states(self.generators)
        self.first: dict[str, Any] | None = None
        self.before: Any = None
        self.this = loaders.UNKEYED
        self.home: tuple[Path, int] | None = None
        self.sharded = sharded.of(value)
        self.counted = self.is_loader or self.sharded is not None
        self.holder = _state_of(value)

    def begin(self) -> None:
        self.begun = _states(self.generators)
        if self.sharded is not None:
            self.sharded.begin_pass(self.this.epoch)
        self.iterator = self._iterator()

    def _iterator(self) -> Iterator[Any]:
        return loaders.begin(self.value, self.this) if self.is_loader else iter(self.value)

    def next(self) -> Any:
        if self.holder is not None:
            self.before = copy.deepcopy(self.holder.state_dict())
        return next(self.iterator)

    @property
    def is_still(self) -> bool:
        """Whether nothing of what is kept of it moves during a pass."""
        return self.holder is None and not self.generators

    def state(self, *, inside: bool) -> dict[str, Any]:
        """What is kept of it. `inside`: a loop inside the current item is the one being read."""
        kept: dict[str, Any] = {"reads": self._kept_reads}
        if self.holder is not None:
            kept["state"] = self.before if inside else self.holder.state_dict()
        if self.generators:
            kept |= {"generators": self.begun, "generators_now": _states(self.generators)}
        if self.first is not None:
            kept["first"] = self.first
        if self.counted:
            kept["pass"] = [self.this.loader, self.this.epoch]
        return kept

    def begin_at(self, count: int, kept: dict[str, Any]) -> Callable[[], bool]:
        """Begin as it was begun. Returns what brings it behind `count` items and tells whether
        they had to be read again."""
        self.begun = [bytes(state) for state in kept.get("generators", [])]
        self.first = kept.get("first")
        _set(self.generators, self.begun)
        value = self.value
        if "state" in kept:
            if self.holder is None:
                raise NotRestored(f"{type(value).__name__} has no load_state_dict, and had one")
            self.holder.load_state_dict(kept["state"])
            self.iterator = iter(value)
            return lambda: False
        if self.is_loader:
            reading = self.iterator = loaders.begin(value, self.this, count)
            return lambda: loaders.advance(reading, value, count)
        if _has_items_by_number(value):
            self.iterator = _by_number(value, count)
            return lambda: False
        if isinstance(value, Iterable):
            self.iterator = self._iterator()
            return self._read_again(count)
        raise Corrupt(f"a {type(value).__name__} cannot be iterated over")

    def _read_again(self, count: int) -> Callable[[], bool]:
        def read() -> bool:
            collections.deque(islice(self.iterator, count), maxlen=0)
            return count > 0

        return read

    def set_generators_now(self, kept: dict[str, Any]) -> None:
        _set(self.generators, kept.get("generators_now", []))


def resume(sources: Sequence[Source], kept: Sequence[dict[str, Any]], count: int) -> list[str]:
    """Bring the iterables of a loop behind their first `count` items. Returns which were opaque.

    The global generators stand as when the loop began, and draw as they drew then: all iterables
    are begun first, then each draws what it draws at its first item (a sampler its seed).
    """
    advances = [s.begin_at(count, state) for s, state in zip(sources, kept, strict=True)]
    notes = []
    for source, advance in zip(sources, advances, strict=True):
        if count and source.first is not None:
            rng.restore(source.first)
        if advance():
            name = type(source.value).__name__
            notes.append(f"{name} was read again from its beginning ({count} items)")
    return notes


def shortest(iterables: Sequence[Any]) -> int | None:
    """How many items a loop over them has, where that is known."""
    lengths = []
    for value in iterables:
        try:
            lengths.append(len(value))
        except TypeError:
            continue
    return min(lengths, default=None)


class Known:
    """Loaders' own generators, by the loop that reads them.

    A loader that no active loop reads at a snapshot has its generator's state there, too: it will
    draw from it again. In a new process that generator stands where the script put it; it is
    recognised by the state in which it was first met, so that one which the script seeds anew for
    every epoch keeps its seed.
    """

    def __init__(self) -> None:
        self._met: dict[Path, list[tuple[Any, bytes]]] = {}
        self._kept: dict[Path, list[tuple[bytes, bytes]]] = {}

    def meet(self, path: Path, sources: Sequence[Source]) -> None:
        """The loop at `path` begins, or is skipped."""
        generators = [g for source in sources for g in source.generators]
        if not generators:
            return
        before = {id(generator): first for generator, first in self._met.get(path, [])}
        kept = self._kept.pop(path, [])
        met = []
        for n, generator in enumerate(generators):
            state = rng.generator_state(generator)
            first = before.get(id(generator), state)
            if n < len(kept) and kept[n][0] == state:
                first, now = kept[n]
                rng.set_generator(generator, now)
            met.append((generator, first))
        self._met[path] = met

    def tree(self) -> list[Any]:
        """What is kept: for every loop its generators' first and present states."""
        if not self._met and not self._kept:  # asked at every boundary
            return []
        return [
            [list(path), [[first, rng.generator_state(g)] for g, first in met]]
            for path, met in self._met.items()
        ] + [[list(path), [list(pair) for pair in kept]] for path, kept in self._kept.items()]

    def keep(self, tree: Sequence[Any]) -> None:
        """What was kept is given back to generators as they are met."""
        self._kept = {
            tuple(path): [(bytes(first), bytes(now)) for first, now in kept] for path, kept in tree
        }


def _state_of(value: Any) -> Any:
    """What has the state that is the position of an iterable: itself, or a loader's dataset."""
    names = ("state_dict", "load_state_dict")
    return value if all(callable(getattr(value, n, None)) for n in names) else sharded.of(value)


def _reads(value: Any) -> Reads:
    """How it is read, for a resume by another number of ranks."""
    name = type(value).__name__
    if _state_of(value) is not None:
        return Reads(elastic.STATE, name)
    if loaders.is_loader(value):
        how = elastic.GLOBAL if loaders.is_global(value) else elastic.LOADER
        return Reads(how, loaders.described(value))
    return Reads(elastic.NUMBERS if _has_items_by_number(value) else elastic.OPAQUE, name)


def require_alike(
    sources: Sequence[Source], kept: Sequence[dict[str, Any]], then: int | None, now: int | None
) -> None:
    """Another number of ranks comes back to a loop. Raises NotRestored where what it goes over is
    not what all ranks went over. `then`, `now`: how many items it had, and has."""
    for source, state in zip(sources, kept, strict=True):
        if reason := elastic.unlike(Reads(*state["reads"]), source.reads, then, now):
            raise NotRestored(reason)


def _states(generators: Sequence[Any]) -> list[bytes]:
    return [rng.generator_state(generator) for generator in generators]


def _set(generators: Sequence[Any], states: Sequence[bytes]) -> None:
    for generator, state in zip(generators, states, strict=False):
        rng.set_generator(generator, state)


def _has_items_by_number(value: Any) -> bool:
    """Sequences, arrays, tensors, and datasets that are iterated over by their item numbers. What
    has an order of its own (a mapping, a table) is not: its items may go by another name."""
    if isinstance(value, Sequence) or is_array_or_tensor(value):
        return True
    numbered = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return numbered and not hasattr(value, "__iter__")


def _by_number(value: Any, count: int) -> Iterator[Any]:
    if isinstance(value, range):
        return iter(value[count:])
    return (value[n] for n in range(count, len(value)))
