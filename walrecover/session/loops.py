"""Resumable loops: where training stands in its data, and how it gets back there.

Owns the stack of active loops and the boundary's timing; what happens at a boundary is `run`'s.
A position is a list of `Place`s, outermost first: how many items each loop had handed out, and the
random state its iteration and its current item began with, so that on resume every prologue
repeats as it was (DESIGN: restore order).
"""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec

from walrecover.errors import BadInput, Corrupt, NotRestored
from walrecover.torch_adapter import loaders, rng


class Place(msgspec.Struct):
    """One loop of a position. `done`: for each finished loop inside its current item, whether
    steps were made there. `broken`: left by break, then finished at that length."""

    ordinal: int
    consumed: int
    begin: dict[str, Any]
    item: dict[str, Any]
    done: list[bool]
    length: int | None = None
    broken: bool = False
    sources: list[Any] = []


class Position(msgspec.Struct):
    """`places` outermost first, the last one being the loop whose next item was asked for.
    `done`: as in Place, for loops that stood at the top level before."""

    places: list[Place] = []
    done: list[bool] = []


class Host(Protocol):
    """What the loops need of the run."""

    def boundary(self) -> None: ...

    def restore_again(self) -> None: ...

    def loops_ended(self) -> None: ...


class Frame:
    """One active loop."""

    def __init__(self, ordinal: int, iterables: Sequence[Any]) -> None:
        self.ordinal = ordinal
        self.iterables = iterables
        self.consumed = 0
        self.begin = rng.capture()
        self.item: dict[str, Any] = self.begin
        self.done: list[bool] = []
        self.stepped = False
        self.length = _shortest(iterables)
        self.iterators: list[Iterator[Any]] = []
        self.resumed_inside = False
        self.generators: list[list[bytes]] = []

    def place(self, broken: bool = False) -> Place:
        return Place(
            ordinal=self.ordinal,
            consumed=self.consumed,
            begin=self.begin,
            item=self.item,
            done=list(self.done),
            length=self.length,
            broken=broken,
            sources=[
                _source_state(value, begun)
                for value, begun in zip(self.iterables, self.generators, strict=True)
            ],
        )


def _shortest(iterables: Sequence[Any]) -> int | None:
    lengths = []
    for value in iterables:
        try:
            lengths.append(len(value))
        except TypeError:
            continue
    return min(lengths, default=None)


class Loops:
    """The stack of active loops of a run, and what is left of a position to get back to."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.stack: list[Frame] = []
        self.done: list[bool] = []
        self.children = [0]
        self.pending: Position | None = None
        self.stepped_in: Frame | None = None
        self.step_waiting = False
        self.thread = threading.get_ident()
        self.last_top: Place | None = None
        self.done_before_top: list[bool] = []
        self.opaque: list[str] = []

    def begin_resume(self, position: Position) -> None:
        """Loops that start from now on continue where `position` says."""
        self.pending = position if position.places else None
        self.done = list(position.done)

    # -- what the run asks ------------------------------------------------------------------

    def position(self) -> Position:
        """Where training stands, at a boundary."""
        if not self.stack and self.last_top is not None:
            return Position([self.last_top], self.done_before_top)
        return Position([frame.place() for frame in self.stack], list(self.done))

    def end_position(self) -> Position:
        """Where training stands when `finish` is called in the middle of a loop, or after it."""
        if self.stack:
            return Position([self.stack[0].place(broken=True)], list(self.done))
        return self.position()

    def indices(self) -> tuple[int, ...]:
        return tuple(frame.consumed for frame in self.stack)

    def step_made(self) -> None:
        """`run.step` was called: the boundary is when the loop it stands in asks for its next
        item. Raises NotRestored where the snapshot lies in a loop that was not entered."""
        if self.pending is not None:
            raise NotRestored(
                "run.step() was called before the loop that the snapshot was taken in: keep the "
                "loops of the script as they were, or start over with WALRECOVER_RESUME=never"
            )
        if threading.get_ident() != self.thread and self.stack:
            raise BadInput("run.step() was called in another thread than run.loop()")
        self.step_waiting = True
        self.stepped_in = self.stack[-1] if self.stack else None
        for frame in self.stack:
            frame.stepped = True

    # -- what the iterators ask -------------------------------------------------------------

    def enter(self, iterables: Sequence[Any]) -> tuple[Frame, str]:
        """Open a loop. Returns its frame and "new", "resumed" or "skipped"."""
        ordinal = self.children[-1]
        self.children[-1] += 1
        depth = len(self.stack)
        pending = self.pending
        frame = Frame(ordinal, iterables)
        how = "new"
        if pending is not None and depth <= len(pending.places) - 1 and self._matched(depth):
            place = pending.places[depth]
            done = pending.places[depth - 1].done if depth else pending.done
            if ordinal < place.ordinal:
                how = "skipped" if ordinal < len(done) and done[ordinal] else "new"
            elif ordinal == place.ordinal:
                how = "resumed"
                self._resume(frame, place, depth)
            else:
                raise NotRestored(self._lost(depth))
        elif pending is None and depth == 0 and ordinal < len(self.done):
            how = "skipped" if self.done[ordinal] else "new"
        if how == "skipped":
            self._mark_done(ordinal, True)
            return frame, how
        self.stack.append(frame)
        self.children.append(0)
        if how == "new":
            frame.generators = [_generator_states(value) for value in iterables]
            frame.iterators = [iter(value) for value in iterables]
        elif pending is not None and depth == len(pending.places) - 1:
            self.pending = None
            self.host.restore_again()
        return frame, how

    def _mark_done(self, ordinal: int, stepped: bool) -> None:
        done = self.stack[-1].done if self.stack else self.done
        while len(done) <= ordinal:
            done.append(False)
        done[ordinal] = done[ordinal] or stepped

    def _matched(self, depth: int) -> bool:
        return all(frame.resumed_inside for frame in self.stack[:depth])

    def _lost(self, depth: int) -> str:
        return (
            f"the snapshot was taken inside loop number {self.pending.places[depth].ordinal + 1} "  # type: ignore[union-attr]
            f"at depth {depth + 1}, which this script did not enter: keep the loops as they were, "
            f"or start over with WALRECOVER_RESUME=never"
        )

    def _resume(self, frame: Frame, place: Place, depth: int) -> None:
        """Bring the loop to its place; the caller restores the objects and the RNG after it."""
        assert self.pending is not None
        innermost = depth == len(self.pending.places) - 1
        if len(place.sources) != len(frame.iterables):
            raise NotRestored(
                f"the loop went over {len(place.sources)} iterables, and goes over "
                f"{len(frame.iterables)} now"
            )
        rng.restore(place.begin)
        frame.begin = place.begin
        frame.item = place.item
        frame.done = list(place.done) if innermost else []
        frame.stepped = True
        if place.broken:
            grown = (
                frame.length is not None
                and place.length is not None
                and frame.length > place.length
            )
            if not grown:
                frame.consumed = place.consumed
                frame.generators = [[] for _ in frame.iterables]
                frame.iterators = [iter(()) for _ in frame.iterables]
                return
        skip = place.consumed if innermost else place.consumed - 1
        for value, state in zip(frame.iterables, place.sources, strict=True):
            frame.generators.append([bytes(b) for b in state.get("generators", [])])
            iterator, opaque = _advanced(value, skip, state)
            frame.iterators.append(iterator)
            if opaque and skip:
                self.opaque.append(
                    f"{type(value).__name__} was read again from its beginning ({skip} items)"
                )
        frame.consumed = skip
        if innermost:
            for value, state in zip(frame.iterables, place.sources, strict=True):
                _set_generators(value, state.get("generators_now", []))
        else:
            frame.resumed_inside = True

    def next_item(self, frame: Frame) -> Any:
        """The next item of a loop: first the boundary, where one is due, then the fetch."""
        self._require_active(frame)
        if self.step_waiting and (
            self.stepped_in is frame or self.stepped_in is None or self.stepped_in not in self.stack
        ):
            self.step_waiting = False
            self.host.boundary()
        resumed = frame.resumed_inside
        if resumed and self.pending is None:
            frame.resumed_inside = resumed = False
        if resumed and frame.consumed >= self._pending_place(frame).consumed:
            raise NotRestored(self._lost(self.stack.index(frame) + 1))
        items = [next(iterator) for iterator in frame.iterators]
        frame.consumed += 1
        frame.done = []
        self.children[-1] = 0
        if resumed:
            rng.restore(frame.item)
        else:
            frame.item = rng.capture()
        return items[0] if len(items) == 1 else tuple(items)

    def _pending_place(self, frame: Frame) -> Place:
        assert self.pending is not None
        return self.pending.places[self.stack.index(frame)]

    def _require_active(self, frame: Frame) -> None:
        if threading.get_ident() != self.thread:
            raise BadInput(
                "something reads ahead of run.loop() in another thread, so that its position is "
                "not the training's: let run.loop() be the outermost reader, run.loop(prefetch(…))"
            )
        if frame not in self.stack:
            raise BadInput("two run.loop() were read at once: give both to one, run.loop(a, b)")
        while self.stack[-1] is not frame:  # left by break while somebody held its iterator
            self.leave(self.stack[-1])

    def leave(self, frame: Frame, broken: bool = True) -> None:
        """A loop has ended, by break or by exhaustion; loops inside it have ended too."""
        if frame not in self.stack:
            return
        while True:
            last = self.stack.pop()
            self.children.pop()
            if not self.stack and last.stepped:
                self.last_top = last.place(broken)
                self.done_before_top = list(self.done)
            self._mark_done(last.ordinal, last.stepped)
            if last is frame:
                break
        if frame is self.stepped_in and self.step_waiting:
            self.stepped_in = self.stack[-1] if self.stack else None

    def exhausted(self, frame: Frame) -> None:
        """A loop has no more items. The end of an outermost loop with steps ends the run."""
        if self.stack == [frame] and frame.stepped:
            self.host.loops_ended()
        self.leave(frame, broken=False)


class Loop:
    """What `run.loop` returns: iterate over it. `len` works where the iterables' does."""

    def __init__(self, loops: Loops, iterables: Sequence[Any], counted: bool = False) -> None:
        self._loops = loops
        self._iterables = iterables
        self._counted = counted

    def __len__(self) -> int:
        length = _shortest(self._iterables)
        if length is None:
            raise TypeError(f"{type(self._iterables[0]).__name__} has no length")
        return length

    def __iter__(self) -> Iterator[Any]:
        return LoopIterator(self._loops, self._iterables, self._counted)


class LoopIterator:
    """One iteration of a loop."""

    def __init__(self, loops: Loops, iterables: Sequence[Any], counted: bool) -> None:
        self._loops = loops
        self._counted = counted
        self._ended = True
        self._guard = ReadAhead()
        self._frame, how = loops.enter(iterables)
        self._ended = how == "skipped"

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        loops, frame = self._loops, self._frame
        self._guard.asked(loops, frame, sys._getframe(1))
        try:
            item = loops.next_item(frame)
        except StopIteration:
            self._ended = True
            loops.exhausted(frame)
            raise
        return (frame.consumed - 1, item) if self._counted else item

    def __del__(self) -> None:
        if not self._ended and not sys.is_finalizing():
            self._ended = True
            if threading.get_ident() == self._loops.thread:
                self._loops.leave(self._frame)


class ReadAhead:
    """Notices a wrapper that fetches an item before the step of the one before is made.

    A wrapper that reads one ahead asks twice before the first step, then once for every step,
    while one that only passes items on asks for the same number before every step. Only readers
    that are Python frames of their own, between the loop and the code that calls `run.step`, are
    suspected: a plain `for` may skip its first item.
    """

    def __init__(self) -> None:
        self.asked_since = 0
        self.first: int | None = None
        self.checked = False

    def asked(self, loops: Loops, frame: Frame, caller: Any) -> None:
        if self.checked:
            return
        if loops.step_waiting and loops.stepped_in is frame:
            if self.first is None:
                self.first = self.asked_since
            else:
                self.checked = True
                is_wrapper = caller.f_code.co_flags & 0x20  # a generator between loop and body
                known = caller.f_globals.get("__name__", "").split(".")[0] in ("tqdm", "rich")
                if is_wrapper and not known and self.first == self.asked_since + 1:
                    raise BadInput(
                        f"{caller.f_code.co_qualname} in {caller.f_code.co_filename} reads ahead "
                        f"of run.loop(): it had fetched {self.first} items before the first step and "
                        f"{self.asked_since} before the second, so that the position is not the "
                        f"training's. Let run.loop() be the outermost reader"
                    )
            self.asked_since = 0
        self.asked_since += 1


# -- sources of items ---------------------------------------------------------------------------


def _has_state(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


def _generator_states(value: Any) -> list[bytes]:
    if not loaders.is_loader(value):
        return []
    return [rng.generator_state(g) for g in loaders.generators(value)]


def _set_generators(value: Any, states: Sequence[bytes]) -> None:
    if loaders.is_loader(value):
        for generator, state in zip(loaders.generators(value), states, strict=False):
            rng.set_generator(generator, state)


def _source_state(value: Any, begun: list[bytes]) -> dict[str, Any]:
    if _has_state(value):
        return {"state": value.state_dict()}
    return {"generators": begun, "generators_now": _generator_states(value)} if begun else {}


def _is_indexed(value: Any) -> bool:
    """Arrays, tensors and datasets: they have items by number, as a sequence does."""
    return (
        hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
        and not isinstance(value, Mapping)
    )


def _advanced(value: Any, count: int, state: dict[str, Any]) -> tuple[Iterator[Any], bool]:
    """An iterator over what comes after `count` items, and whether they had to be read again."""
    if "state" in state:
        if not _has_state(value):
            raise NotRestored(f"{type(value).__name__} has no load_state_dict, and had one")
        value.load_state_dict(state["state"])
        return iter(value), False
    if loaders.is_loader(value):
        _set_generators(value, state.get("generators", []))
        return loaders.skip(value, count), False
    if isinstance(value, range):
        return iter(value[count:]), False
    if isinstance(value, Sequence) or _is_indexed(value):
        return (value[n] for n in range(count, len(value))), False
    if isinstance(value, Iterable):
        iterator = iter(value)
        # Read now, not at the first `next`: what it draws, it must draw before the RNG is set.
        collections.deque(islice(iterator, count), maxlen=0)
        return iterator, True
    raise Corrupt(f"a {type(value).__name__} cannot be iterated over")
