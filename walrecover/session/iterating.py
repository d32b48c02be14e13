"""What `run.loop` gives the script, to iterate over.

Owns Python's side of it: `len`, iterators, their end by exhaustion or by being dropped. Where the
loop stands is `loops`'.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from walrecover.session.loops import Loops
from walrecover.session.sources import shortest


class Loop:
    """What `run.loop` returns: iterate over it. `len` works where the iterables' does."""

    def __init__(self, loops: Loops, iterables: Sequence[Any], counted: bool = False) -> None:
        self._loops = loops
        self._iterables = iterables
        self._counted = counted

    def __len__(self) -> int:
        length = shortest(self._iterables)
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
        self._frame, how = loops.enter(iterables)
        self._ended = how == "skipped"

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        loops, frame = self._loops, self._frame
        if not frame.guard.checked:
            frame.guard.asked(sys._getframe(1))
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
                with contextlib.suppress(RuntimeError):  # of a device that is gone: torch's own
                    self._loops.leave(self._frame)
