"""Server-sent events: which runs have new rows, and how far the follower is.

Owns the listeners, and that a slow one costs nothing: it holds a set of numbers, not a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

MOST_LISTENERS = 64
BEAT_SECONDS = 15.0
GATHER_SECONDS = 0.05


class Listener:
    def __init__(self) -> None:
        self.runs: set[int] = set()
        self.progress = ""
        self.stirred = asyncio.Event()


class Hub:
    """For one event loop; `changed` and `told` may be called from any thread."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._progress = ""

    def begin(self) -> None:
        """In the loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Let go of all listeners; from any thread."""
        self._closed = True
        self._call(lambda each: None)

    def is_full(self) -> bool:
        return len(self._listeners) >= MOST_LISTENERS

    def changed(self, runs: frozenset[int]) -> None:
        self._call(lambda each: each.runs.update(runs))

    def told(self, progress: str) -> None:
        self._progress = progress  # for whoever comes later
        self._call(lambda each: setattr(each, "progress", progress))

    def _call(self, note: Callable[[Listener], None]) -> None:
        def spread() -> None:
            for listener in self._listeners:
                note(listener)
                listener.stirred.set()

        # With nobody there the loop is not woken: who comes later has asked for the rows by then.
        if self._loop is not None and (self._listeners or self._closed):
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(spread)

    async def listen(self) -> AsyncIterator[bytes]:
        listener = Listener()
        listener.progress = self._progress
        listener.stirred.set()
        self._listeners.add(listener)
        try:
            yield b"retry: 1000\n\n"
            while not self._closed:
                try:
                    await asyncio.wait_for(listener.stirred.wait(), BEAT_SECONDS)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                await asyncio.sleep(GATHER_SECONDS)
                listener.stirred.clear()
                runs, listener.runs = listener.runs, set()
                progress, listener.progress = listener.progress, ""
                if progress:
                    yield f"event: progress\ndata: {progress}\n\n".encode()
                if runs:
                    numbers = ",".join(map(str, sorted(runs)))
                    yield f"event: changed\ndata: {numbers}\n\n".encode()
        finally:
            self._listeners.discard(listener)
