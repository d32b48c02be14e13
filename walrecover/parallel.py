"""Moving many bytes by several threads: one alone does not use what the memory could carry.

Owns how many there are, and who does what.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE_BYTES = 4 << 20
MOST_THREADS = 4

Item = TypeVar("Item")


def copy(moves: Iterable[tuple[int, int, int]]) -> None:
    """Copy memory: (to, from, bytes) each, which must not overlap."""
    pieces = [
        (to + begin, source + begin, min(AT_ONCE_BYTES, nbytes - begin))
        for to, source, nbytes in moves
        for begin in range(0, nbytes, AT_ONCE_BYTES)
    ]
    in_threads(_move, pieces, sum(nbytes for _, _, nbytes in pieces))


def _move(piece: tuple[int, int, int]) -> None:
    """Without the interpreter's lock: other threads go on."""
    ctypes.memmove(*piece)


def in_threads(call: Callable[[Item], object], items: Sequence[Item], nbytes: int) -> None:
    """Call it for each, beside each other where there are so many bytes to move that it pays: each
    thread takes the next one that is left, since they differ in size. The calls must leave the
    interpreter's lock. Raises what one that failed did."""
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), nbytes // AT_ONCE_BYTES)
    left = iter(items)

    def work() -> None:
        for item in left:
            call(item)

    if threads < 2:
        work()
        return
    with ThreadPoolExecutor(threads - 1, "walrecover-move") as pool:
        others: list[Future[None]] = []
        with contextlib.suppress(RuntimeError):  # none begins once the interpreter ends
            others += [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
