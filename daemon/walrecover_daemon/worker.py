"""The follower's process: waits until something stirs, follows it, and says what it is doing.

    python -P -m walrecover_daemon.worker        a Job as JSON on its standard input

What it says on its standard output, a line each: `R<path>` it is about to read this stream (`R`:
none any more), `C<ids>` runs with new rows, `P<json>` how far it has come, `Y` it
has caught up with what was there, `B` its loop goes round, `T<text>` for people.
Its standard input stays open for as long as its keeper lives.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from walrecover.errors import BadInput, Fenced, UnsupportedVersion, WalrecoverError
from walrecover_daemon.finding import Finder, Stirred
from walrecover_daemon.following import Follower
from walrecover_daemon.reading import Readers
from walrecover_daemon.readmodel import Damaged, ReadModel, is_damage
from walrecover_daemon.waking import Waker

DAMAGED = 3
"""Exit code: the read model is to be made anew."""

POLL_SECONDS = 2.0
SHARE = 100
"""Listing everything may take this part of the time."""

GATHER_SECONDS = 0.1
"""After something stirred: with many runs, much stirs together, and with one a few steps."""

PROGRESS_SECONDS = 1.0
"""How often it is said how far it has come, where nothing is left to be read."""

HOT_SECONDS = 0.25
HOT_SHARE = 20
"""Without inotify, runs that may be alive are looked at so often, at most this part of the time."""


_Result = TypeVar("_Result")


class Job(msgspec.Struct, frozen=True):
    """`owner`: whose read model it is. `suspects`: streams that an earlier follower died of.
    `beat`: seconds between two words that its loop goes round; None: nobody asks."""

    readmodel: str
    owner: str
    roots: list[str]
    journal: str | None = None
    suspects: list[str] = []
    once: bool = False
    beat: float | None = None


class Progress(msgspec.Struct, frozen=True):
    """`waiting`: runs that are still to be read; `events`: read since the start."""

    runs: int
    waiting: int
    events: int


class Worker:
    def __init__(self, job: Job) -> None:
        self._job = job
        journal = Path(job.journal) if job.journal else None
        roots = [Path(root) for root in job.roots]
        self._finder = Finder(roots, journal)
        self._waker = Waker(roots, journal)
        self._model = ReadModel(Path(job.readmodel), job.owner)
        self._follower = Follower(
            self._model,
            self._finder,
            Readers(lambda path: say("R", path)),
            lambda runs: say("C", ",".join(map(str, sorted(runs)))),
            job.suspects,
        )
        self._ended = threading.Event()
        self._runs = 0
        self._full = ""
        self._next_beat = self._next_progress = 0.0

    def run(self) -> None:
        places = self._finder.places()
        if not self._job.once:
            threading.Thread(target=self._await_end, daemon=True).start()
            self._waker.begin(len(places))
            if self._waker.blind:
                say("T", f"no events from the file system: {self._waker.blind}; it is looked at")
        try:
            self._catch_up(self._follower.recall())
            self._say_progress(0)
            pause = self._look_at_all()
            self._say_progress(0)
            say("Y", "")
            if not self._job.once:
                self._serve(pause)
            self._guarded(self._follower.close)
        finally:
            self._waker.end()
            self._model.close()

    def _await_end(self) -> None:
        """The keeper closes our standard input, or dies."""
        while os.read(0, 4096):
            pass
        self._ended.set()
        self._waker.wake.set()

    def _serve(self, pause: float) -> None:
        poll, hot = time.monotonic() + pause, HOT_SECONDS
        while not self._ended.is_set():
            due = self._follower.settles_in()
            wait = poll - time.monotonic()
            wait = wait if due is None else min(wait, due)
            if self._waker.blind:
                wait = min(wait, hot)
            if self._job.beat:
                wait = min(wait, self._job.beat)
            if self._waker.wake.wait(max(0.0, wait)) and not self._ended.is_set():
                self._ended.wait(GATHER_SECONDS)
            stirred, anew = self._waker.take()
            if self._waker.blind:
                began = time.monotonic()
                stirred = list(self._finder.changed(self._follower.living()))
                hot = max(HOT_SECONDS, HOT_SHARE * (time.monotonic() - began))
            self._catch_up(stirred)
            self._guarded(self._follower.settle)
            self._beat()
            if anew or time.monotonic() >= poll:
                poll = time.monotonic() + self._look_at_all()

    def _look_at_all(self) -> float:
        """The slow poll. Returns how long to wait for the next one."""
        began = time.monotonic()
        places = self._finder.places()
        self._runs = len(places)
        stirred = []
        for one in self._finder.changed(places):
            stirred.append(one)
            self._beat()
        took = time.monotonic() - began
        stirred += self._follower.gone(places) + self._follower.changed_holders()
        self._say_progress(len(stirred))
        self._catch_up(stirred)
        if self._model.is_lost():
            raise Damaged("it was taken away")
        return max(POLL_SECONDS, SHARE * took)

    def _catch_up(self, stirred: list[Stirred]) -> None:
        while stirred and not self._ended.is_set():
            left = self._guarded(partial(self._follower.follow, stirred))
            if left is None:
                return  # the slow poll finds it again
            stirred = left
            if stirred or time.monotonic() >= self._next_progress:
                self._say_progress(len(stirred))
            self._beat()

    def _beat(self) -> None:
        """Wherever the loop goes round; said as often as somebody asks."""
        if self._job.beat and time.monotonic() >= self._next_beat:
            say("B", "")
            self._next_beat = time.monotonic() + self._job.beat / 2

    def _say_progress(self, waiting: int) -> None:
        self._next_progress = time.monotonic() + PROGRESS_SECONDS
        progress = Progress(self._runs, waiting, self._follower.read)
        say("P", msgspec.json.encode(progress).decode())

    def _guarded(self, work: Callable[[], _Result]) -> _Result | None:
        """What a full disk, or one that fails, must not end."""
        try:
            result = work()
            self._full = ""
            return result
        except sqlite3.Error as error:
            if is_damage(error):
                raise
            if str(error) != self._full:
                say("T", f"the read model cannot be written ({error}): it is tried again")
            self._full = str(error)
            return None


def say(kind: str, text: str) -> None:
    line = memoryview(f"{kind}{text.translate(_ONE_LINE)}\n".encode(errors="surrogateescape"))
    while line:
        line = line[os.write(1, line) :]


_ONE_LINE = {10: " ", 13: " "}


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # It comes after every training: what is shown may be late, a step must not. Threads inherit it.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    gc.set_threshold(200_000, 20, 20)  # events and rows come in thousands, and hold no cycles
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keeper hears it, and ends this process
    job = msgspec.json.decode(_first_line(), type=Job)
    try:
        Worker(job).run()
    except BrokenPipeError:
        return 0  # nobody is there any more
    except Damaged as error:
        say("T", f"the read model is damaged: {error}")
        return DAMAGED
    except sqlite3.Error as error:
        say("T", f"the read model is damaged: {error}")
        return DAMAGED if is_damage(error) else 1
    except Fenced as error:
        say("T", str(error))
        return 0
    except UnsupportedVersion as error:
        say("T", str(error))
        return BadInput.exit_code
    except (WalrecoverError, OSError) as error:
        say("T", str(error))
        return getattr(error, "exit_code", 1)
    return 0


def _first_line() -> bytes:
    found = b""
    while not found.endswith(b"\n") and (data := os.read(0, 1 << 16)):
        found += data
    return found


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
