"""Moving many bytes by several threads: one alone does not use what the memory could carry.

Owns how many there are, and who does what.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    interpreter's lock. Raises what the first to fail did, once nobody is at work any more."""
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), nbytes // AT_ONCE_BYTES)
    if threads < 2:
        for item in items:
            call(item)
        return
    left, failed = iter(items), list[BaseException]()

    def work() -> None:
        try:
            for item in left:
                call(item)
        except BaseException as error:  # a KeyboardInterrupt in this thread
            failed.append(error)

    with ThreadPoolExecutor(threads - 1, "walrecover-move") as pool:
        with contextlib.suppress(RuntimeError):  # none begins once the interpreter ends
            for _ in range(threads - 1):
                pool.submit(work)
        work()
    if failed:
        raise failed[0]
