"""Runs checks on states, in this process or in forked ones that may die of what they read.

Owns: processes, directories for states, and telling whose state killed a checker. It must not
decide which states are looked at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from .model import History
from .rebuild import Builder, Tree, clear

if TYPE_CHECKING:
    from .explore import State

Check = Callable[[Path, tuple[str, ...]], str | None]
_AHEAD = 4
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Finding:
    state: State
    message: str | None


def run(
    history: History,
    states: Iterator[State],
    check: Check,
    workers: int,
    limit: float,
    scratch: Path | None,
) -> Generator[Finding, None, None]:
    """The finding on each state; in the order of the states only without workers."""
    where = scratch or (_MEMORY if os.access(_MEMORY, os.W_OK) else None)
    base = Path(tempfile.mkdtemp(prefix="crash-states-", dir=where))
    try:
        if workers:
            yield from _Pool(history, check, workers, limit, base).run(states)
        else:
            for state in states:
                yield Finding(state, checked(check, state.tree, state.acks, base))
    finally:
        shutil.rmtree(base, ignore_errors=True)


def checked(check: Check, tree: Tree, acks: tuple[str, ...], base: Path) -> str | None:
    """One state, in a directory of its own that is gone afterwards."""
    tree.write(base)
    try:
        return check(base, acks)
    except Exception:
        return f"the check raised\n{traceback.format_exc(limit=-4)}"
    finally:
        clear(base)


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    base: Path
    states: deque[State] = field(default_factory=deque)
    since: float = 0.0


class _Pool:
    def __init__(
        self, history: History, check: Check, workers: int, limit: float, base: Path
    ) -> None:
        self._history, self._check, self._limit, self._base = history, check, limit, base
        self._fork = multiprocessing.get_context("fork")
        self._started = 0
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> _Worker:
        self._started += 1
        base = self._base / str(self._started)
        base.mkdir()
        ours, theirs = self._fork.Pipe()
        process = self._fork.Process(target=self._serve, args=(theirs, ours, base), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, base)

    def _serve(self, pipe: Connection, other: Connection, base: Path) -> None:
        other.close()
        faulthandler.disable()  # a death is a finding, not news
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        builder = Builder(self._history)
        while request := pipe.recv():
            choice, acks = request
            pipe.send(checked(self._check, builder.tree(choice), acks, base))

    def run(self, states: Iterator[State]) -> Iterator[Finding]:
        try:
            for state in states:
                while not (free := [w for w in self._workers if len(w.states) < _AHEAD]):
                    yield from self._collect()
                self._give(min(free, key=lambda worker: len(worker.states)), state)
            while any(worker.states for worker in self._workers):
                yield from self._collect()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()

    def _give(self, worker: _Worker, state: State) -> None:
        if not worker.states:
            worker.since = time.monotonic()
        worker.states.append(state)
        # A dead worker cannot take it; reading from it says so, and whose state killed it.
        with contextlib.suppress(OSError):
            worker.pipe.send((state.choice, state.acks))

    def _collect(self) -> Iterator[Finding]:
        busy = {worker.pipe: worker for worker in self._workers if worker.states}
        for pipe in wait(list(busy), timeout=1.0):
            worker = busy[pipe]  # type: ignore[index]
            try:
                message = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                yield self._buried(worker)
                continue
            worker.since = time.monotonic()
            yield Finding(worker.states.popleft(), message)
        for worker in busy.values():
            if worker.states and time.monotonic() - worker.since > self._limit:
                worker.process.kill()

    def _buried(self, worker: _Worker) -> Finding:
        """The oldest state it held killed it; another process takes the others."""
        worker.process.join()
        state, code = worker.states.popleft(), worker.process.exitcode
        worker.pipe.close()
        shutil.rmtree(worker.base, ignore_errors=True)
        successor = self._start()
        self._workers[self._workers.index(worker)] = successor
        for other in worker.states:
            self._give(successor, other)
        return Finding(state, f"the check died: exit code {code} (a signal if negative)")
