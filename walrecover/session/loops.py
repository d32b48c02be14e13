"""Resumable loops: where training stands in its data, and how it gets back there.

Owns the stack of active loops and the boundary's timing; what happens at a boundary is `run`'s,
what a loop reads is `sources`', what the script iterates over `iterating`'s.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Sequence
from threading import get_ident
from typing import Any, Protocol

from walrecover import skips as skipping
from walrecover.entries import Skip
from walrecover.errors import BadInput, NotRestored
from walrecover.session import sources
from walrecover.session.consuming import Consuming, Reader
from walrecover.session.passes import Keys, Passes, Path
from walrecover.session.position import Counts, Place, Position
from walrecover.session.readahead import ReadAhead
from walrecover.session.sources import Known, Source, shortest
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.batches import Batch

KEPT_ENDS = 16
BEHIND = -1  # the level of steps behind a loop that had ended

_consumed = operator.attrgetter("consumed")
_readers = operator.attrgetter("readers")


class Host(Protocol):
    """What the loops need of the run."""

    def boundary(self) -> dict[str, Any] | None: ...

    def restore_again(self) -> None: ...

    def loops_ended(self) -> None: ...

    def pausing(self) -> None: ...


class Frame:
    """One active loop."""

    def __init__(self, ordinal: int, iterables: Sequence[Any]) -> None:
        self.ordinal = ordinal
        self.sources = [Source(value) for value in iterables]
        self.length = shortest(iterables)
        self.consumed = 0
        self.begin = rng.capture()
        self.before = self.begin
        self.done: list[Any] = []
        self.direct = 0
        self.trains = False
        self.items_since_step = 0
        self.stepped = False
        self.resumed_inside = False
        self.guard = ReadAhead()
        self.readers: list[Reader] = []
        self.passes: Counts = ()
        self.batch = Batch()
        self._still: list[Any] | None = None  # its sources' states, where they do not move

    def place(self, *, inside: bool = False, broken: bool = False) -> Place:
        return Place(
            ordinal=self.ordinal,
            consumed=self.consumed,
            begin=self.begin,
            before=self.before,
            done=list(self.done),
            direct=self.direct,
            trains=self.trains,
            length=self.length,
            broken=broken,
            sources=self._still or self._states(inside),
            passes=self.passes if inside else (),
        )

    def _states(self, inside: bool) -> list[Any]:
        states = [source.state(inside=inside) for source in self.sources]
        if len(states) == 1 and self.sources[0].is_still:
            self._still = states
        return states

    def fetch(self) -> list[Any]:
        """The next item of every source. Raises StopIteration."""
        items: list[Any] = []
        for source in self.sources:
            if items and self.consumed == 0 and source.first is None:
                source.first = rng.capture()
            items.append(source.next())
        return items


class Loops:
    """The stack of active loops of a run, and what is left of a position to get back to."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.stack: list[Frame] = []
        self.begun = rng.capture()
        self.done: list[Any] = []
        self.direct = 0
        self.behind = 0
        self.replays: dict[int, int] = {}
        self.children = [0]
        self.pending: Position | None = None
        self.stepped_in: Frame | None = None
        self.step_waiting = False
        self.thread = get_ident()
        self.last_top: Place | None = None
        self.done_before_top: list[Any] = []
        self.misread = ""
        self.known = Known()
        self.opaque: list[str] = []
        self.consuming = Consuming()
        self.dealt = False
        self.passes = Passes()
        self.keys = Keys(rng.first_seed())
        self.skips: Sequence[Skip] = ()

    def read_as(self, rank: int, keyed: bool, skips: Sequence[Skip]) -> None:
        """Whose loops these are; whether the randomness in loaders' workers is keyed; what the
        plan leaves out."""
        self.keys = self.keys._replace(rank=rank, keyed=keyed)
        self.skips = skips

    def begin_resume(self, position: Position, *, dealt: bool = False) -> None:
        """Loops that start from now on continue where `position` says. `dealt`: another number of
        ranks had come there."""
        self.dealt = dealt
        self.pending = position if position.places else None
        self.begun = position.begun
        self.done = list(position.done)
        self.direct = position.direct
        self.replays = {n: place.direct for n, place in enumerate(position.places[:-1], 1)}
        self.replays |= {0: position.direct, BEHIND: position.behind}
        self.known.keep(position.generators)
        self.consuming.keep(position.ledger)
        self.passes.know(position.passes)
        if position.seed is not None:
            self.keys = self.keys._replace(seed=position.seed)

    # -- what the run asks ------------------------------------------------------------------

    def position(self) -> Position:
        """Where training stands, at a boundary."""
        if not self.stack and self.last_top is not None:
            return Position(
                [self.last_top],
                self.begun,
                self.done_before_top,
                self.direct - self.behind,
                self.behind,
                self.known.tree(),
                self.consuming.ledger(()),
                passes=self.passes.counts,
                seed=self.keys.seed,
            )
        last = len(self.stack) - 1
        places = [frame.place(inside=n < last) for n, frame in enumerate(self.stack)]
        return self._at(places)

    def end_position(self) -> Position:
        """Where training stands when `finish` is called in the middle of a loop, or after it."""
        if self.stack:
            return self._at([self.stack[0].place(broken=True)])
        return self.position()

    def _at(self, places: list[Place]) -> Position:
        return Position(
            places,
            self.begun,
            list(self.done),
            self.direct,
            0,
            self.known.tree(),
            self.consuming.ledger(map(_readers, self.stack)),
            passes=self.passes.counts,
            seed=self.keys.seed,
        )

    def indices(self) -> tuple[int, ...]:
        return tuple(map(_consumed, self.stack))

    def step_made(self) -> bool:
        """`run.step` was called: the boundary is when the loop it stands in asks for its next
        item. False where it is a step before the snapshot that the script goes through again on
        its way to the loop in which the snapshot was taken.

        Raises NotRestored where that loop was not entered, BadInput where something reads ahead.
        """
        if self.misread:
            raise BadInput(self.misread)
        if (self.pending is not None or not self.stack) and self._is_replay():
            return False
        if self.pending is not None:
            raise NotRestored(
                "run.step() was called before the loop that the snapshot was taken in: keep the "
                "loops of the script as they were, or start over with WALRECOVER_RESUME=never"
            )
        if (thread := get_ident()) != self.thread:
            if self.stack:
                raise BadInput(
                    "run.step() was called in another thread than run.loop(): something reads "
                    "ahead in a thread. Let run.loop() be the outermost reader, "
                    "run.loop(prefetch(…))"
                )
            self.thread = thread
        self.stepped_in = self.stack[-1] if self.stack else None
        if self.stepped_in is not None:
            if not self.stepped_in.guard.checked:
                self.stepped_in.guard.stepped(sys._getframe(1))
            self.stepped_in.direct += 1
            self.stepped_in.trains = True
        else:
            self.direct += 1
            self.behind += 1
        self.step_waiting = True
        for frame in self.stack:
            frame.stepped = True
            frame.items_since_step = 0
        self.consuming.made(map(_readers, self.stack))
        return True

    def _is_replay(self) -> bool:
        level = len(self.stack)
        if self.pending is None:
            level = BEHIND
            if not self.replays.get(BEHIND):
                return False
        elif not all(frame.resumed_inside for frame in self.stack) or not self.replays.get(level):
            return False
        self.replays[level] -= 1
        if level == BEHIND and not self.replays[level]:
            self.host.restore_again()
        return True

    def step_is_boundary(self) -> bool:
        """Whether a step was made in a loop of the script's own.

        Behind a finished `run.loop` it is not: resuming runs the code there again, so the state
        in its middle cannot be come back to. Its boundary is the next loop's first request.
        """
        return not self.stack and self.last_top is None

    def goes_on_elsewhere(self) -> bool:
        """Whether the thread that trains is another one, and alive."""
        return get_ident() != self.thread and any(
            thread.ident == self.thread for thread in threading.enumerate()
        )

    def is_behind(self) -> bool:
        """Whether the snapshot was taken some steps behind the loop that it resumes in."""
        return bool(self.replays.get(BEHIND))

    # -- what the iterators ask -------------------------------------------------------------

    def enter(self, iterables: Sequence[Any]) -> tuple[Frame, str]:
        """Open a loop. Returns its frame and "new", "resumed" or "skipped"."""
        if not self.stack:
            self.thread = get_ident()
        self._require_thread()
        ordinal = self.children[-1]
        self.children[-1] += 1
        depth = len(self.stack)
        frame = Frame(ordinal, iterables)
        how = self._how(ordinal, depth)
        path = (*(f.ordinal for f in self.stack), ordinal)
        self.known.meet(path, frame.sources)
        self._count_passes(path, frame, self.pending if how == "resumed" else None)
        if how == "skipped":
            ended = self._done(depth)[ordinal]
            self._mark_done(ordinal, ended)
            rng.restore(ended)  # what stands between the loops repeats as it was
            return frame, how
        if how == "resumed":
            assert self.pending is not None
            place = self.pending.places[depth]
            self._resume(frame, place, depth)
            frame.readers = self.consuming.resume(
                path, frame.sources, place.consumed, inside=frame.resumed_inside
            )
        else:
            for source in frame.sources:
                source.begin()
            frame.readers = self.consuming.begin(path, frame.sources)
        self.stack.append(frame)
        self.children.append(0)
        if how == "resumed" and not frame.resumed_inside:
            assert self.pending is not None
            self.passes.keep(self.pending.passes)
            self.pending = None
            self.host.restore_again()
        elif how == "new" and depth == 0:
            self.replays[BEHIND] = 0
        return frame, how

    def _count_passes(self, path: Path, frame: Frame, pending: Position | None) -> None:
        """Say of each loader that is read which pass it is. `pending`: of a resumed loop."""
        place = pending.places[len(path) - 1] if pending else None
        busy = {s.this.loader for f in self.stack for s in f.sources if s.counted}
        for n, source in enumerate(frame.sources):
            if not source.counted:
                continue
            number, epoch = self.passes.begin((*path, n), source.value, busy)
            if place is not None and n < len(place.sources):
                number, epoch = place.sources[n].get("pass", (number, epoch))
            busy.add(number)
            *home, which = self.passes.counts[number].home
            source.home = (tuple(home), which)
            count = place.consumed if place else 0
            coming = self.consuming.coming(source.home, map(_readers, self.stack), count)
            skips = skipping.of_pass(self.skips, *coming) if self.skips else ()
            source.this = self.keys.pass_of(number, epoch, skips)

    def _how(self, ordinal: int, depth: int) -> str:
        pending = self.pending
        if pending is not None:
            if depth >= len(pending.places) or not all(f.resumed_inside for f in self.stack):
                return "new"
            place = pending.places[depth]
            if ordinal == place.ordinal:
                return "resumed"
            if ordinal > place.ordinal:
                raise NotRestored(self._lost(depth))
        done = self._done(depth)
        return "skipped" if ordinal < len(done) and done[ordinal] is not None else "new"

    def _done(self, depth: int) -> list[Any]:
        """The loops that had ended before the snapshot, of those that begin now."""
        if depth == 0:
            return self.done
        return self.pending.places[depth - 1].done if self.pending is not None else []

    def _mark_done(self, ordinal: int, ended: dict[str, Any] | None) -> None:
        """`ended`: the random state, of a loop in which steps were made."""
        done = self.stack[-1].done if self.stack else self.done
        done += [None] * (ordinal + 1 - len(done))
        done[ordinal] = ended if done[ordinal] is None else done[ordinal]
        if ended is not None and ordinal >= KEPT_ENDS and done[ordinal - KEPT_ENDS] is not None:
            done[ordinal - KEPT_ENDS] = {}  # a script that loops thousands of times around a loop

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
        if len(place.sources) != len(frame.sources):
            raise NotRestored(
                f"the loop went over {len(place.sources)} iterables, and goes over "
                f"{len(frame.sources)} now"
            )
        rng.restore(place.begin)
        frame.begin, frame.before = place.begin, place.before
        frame.done = list(place.done) if innermost else []
        frame.direct, frame.trains = place.direct, place.trains
        frame.stepped = True
        frame.resumed_inside = not innermost
        if not innermost:
            self.passes.keep(place.passes)
        if place.broken and not _longer(frame.length, place.length):
            frame.consumed = place.consumed
            return  # its sources stay empty
        if self.dealt:
            sources.require_alike(frame.sources, place.sources, place.length, frame.length)
        if frame.length is not None and frame.length < place.consumed and (depth or not innermost):
            raise NotRestored(
                f"the loop had handed out {place.consumed} items when the snapshot was taken, and "
                f"has {frame.length} now: give it what it went over, or start over with "
                f"WALRECOVER_RESUME=never"
            )
        frame.consumed = place.consumed if innermost else place.consumed - 1
        self.opaque += sources.resume(frame.sources, place.sources, frame.consumed)
        if innermost:
            for source, kept in zip(frame.sources, place.sources, strict=True):
                source.set_generators_now(kept)

    def next_item(self, frame: Frame) -> Any:
        """The next item of a loop: first the boundary, where one is due, then the fetch."""
        if self.misread or self.stack[-1:] != [frame] or get_ident() != self.thread:
            self._require_active(frame)
        captured: dict[str, Any] | None = None
        if self.step_waiting and (
            self.stepped_in is frame or self.stepped_in is None or self.stepped_in not in self.stack
        ):
            self.step_waiting = False
            captured = self.host.boundary()
        resumed = frame.resumed_inside and self.pending is not None
        frame.resumed_inside = resumed
        if resumed and frame.consumed >= self._pending_place(frame).consumed:
            raise NotRestored(self._lost(self.stack.index(frame) + 1))
        if resumed:
            rng.restore(frame.before)  # it is fetched again, and draws what it drew
        else:
            frame.before, frame.direct = captured or rng.capture(), 0
        frame.passes = self.passes.counts
        items = frame.fetch()
        frame.batch.take(items)
        frame.consumed += 1
        if not resumed:
            for reader in frame.readers:
                reader.take()
        frame.items_since_step += 1
        frame.done = []
        self.children[-1] = 0
        self.replays[BEHIND] = 0
        return items[0] if len(items) == 1 else tuple(items)

    def _pending_place(self, frame: Frame) -> Place:
        assert self.pending is not None
        return self.pending.places[self.stack.index(frame)]

    def _require_thread(self) -> None:
        if get_ident() != self.thread:
            self.misread = (
                "something reads ahead of run.loop() in another thread, so that its position is "
                "not the training's: let run.loop() be the outermost reader, run.loop(prefetch(…))"
            )
        if self.misread:  # in that thread, and at the next occasion in the training's
            raise BadInput(self.misread)

    def _require_active(self, frame: Frame) -> None:
        self._require_thread()
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
            self.consuming.ended(last.readers, broken)
            if not self.stack and last.stepped:
                self.last_top = last.place(broken=broken)
                self.done_before_top = list(self.done)
                self.behind = 0
            self._mark_done(last.ordinal, rng.capture() if last.stepped else None)
            if last.stepped and self.pending is None:
                self.host.pausing()
            if last is frame:
                break
        if frame is self.stepped_in and self.step_waiting:
            self.stepped_in = self.stack[-1] if self.stack else None

    def exhausted(self, frame: Frame) -> None:
        """A loop has no more items. The end of an outermost loop with steps ends the run, unless
        the last items belong to a step that is still to come (accumulated gradients)."""
        if frame.resumed_inside and self.pending is not None:
            raise NotRestored(self._lost(self.stack.index(frame) + 1))
        half_done = frame.trains and frame.items_since_step
        self.consuming.ended(frame.readers, broken=False)
        if self.stack == [frame] and frame.stepped and not half_done:
            self.host.loops_ended()
        self.leave(frame, broken=False)


def _longer(now: int | None, then: int | None) -> bool:
    return now is not None and then is not None and now > then
