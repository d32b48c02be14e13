"""The keeper: starts the follower's process, hears what it says, and starts it again when it dies.

Owns that process. Damage in a journal may kill it while it reads; the stream it had announced is
then a suspect, which the next one reads in a child of its own. Must not open a journal.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from walrecover.journal.inspector import BY_DAMAGE
from walrecover_daemon import readmodel
from walrecover_daemon.worker import DAMAGED, Job, Progress

PATIENCE_SECONDS = 60.0
"""So long may a follower be silent while it reads."""

MOST_DEATHS = 5
"""In a row, without a line of progress: then it is no use."""

_BACKOFF_SECONDS = 0.2


class Heard:
    """What the follower's process has last said; for other threads to read."""

    def __init__(self) -> None:
        self.progress = Progress(0, 0, 0)
        self.caught_up = False
        self.restarts = 0


class Keeper:
    """`told` gets what people should read, `changed` the ids of runs with new rows, `progress` how
    far the follower is, `beat` that its loop goes round. All of them are called in the thread that
    runs it."""

    def __init__(
        self,
        job: Job,
        told: Callable[[str], None],
        changed: Callable[[frozenset[int]], None] = lambda runs: None,
        progress: Callable[[Progress], None] = lambda progress: None,
        patience: float = PATIENCE_SECONDS,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._job, self._told, self._patience = job, told, patience
        self._changed, self._progress, self._beat = changed, progress, beat
        self._stopping = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None
        self._reading = ""
        self._silent = False
        self.heard = Heard()

    def stop(self) -> None:
        """From any thread: the follower finishes its transaction, and ends."""
        self._stopping.set()
        worker = self._worker
        if worker is not None:
            _close_input(worker)

    def run(self) -> int:
        """Until stopped, or with `once` until all is followed. Returns an exit code."""
        suspects: set[str] = set()
        deaths = 0
        while not self._stopping.is_set():
            before = self.heard.progress.events
            code = self._once(suspects)
            if code >= 0 and code != DAMAGED:
                return code if not self._stopping.is_set() else 0
            if code == DAMAGED:
                aside = readmodel.put_aside(Path(self._job.readmodel))
                self._told(f"it is made anew from the journals; what was there is {aside}")
            elif self._reading and (-code in BY_DAMAGE or self._silent):
                self._told(f"reading {self._reading} ended the follower: it is examined apart")
                suspects.add(self._reading)
            deaths = 0 if self.heard.progress.events > before else deaths + 1
            self.heard.restarts += 1
            if deaths >= MOST_DEATHS:
                self._told(f"the follower has ended {deaths} times without reading on ({code})")
                return 1
            self._stopping.wait(_BACKOFF_SECONDS * deaths)
        return 0

    def _once(self, suspects: set[str]) -> int:
        """One follower's life; its exit status, negative for a signal."""
        job = msgspec.structs.replace(self._job, owner=uuid.uuid4().hex, suspects=sorted(suspects))
        suspects.clear()
        self._reading, self._silent = "", False
        self.heard.progress, self.heard.caught_up = Progress(0, 0, 0), False
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "walrecover_daemon.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._worker = worker
        assert worker.stdin is not None and worker.stdout is not None
        with suppress(OSError, ValueError):  # it has died already, or we are being stopped
            worker.stdin.write(msgspec.json.encode(job) + b"\n")
            worker.stdin.flush()
        if self._stopping.is_set():
            _close_input(worker)
        try:
            self._listen(worker)
            return worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            worker.stdout.close()
            _close_input(worker)

    def _listen(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout is not None
        rest, pipe = b"", worker.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            patience = self._patience * 1000 if self._reading else None
            if not poll.poll(patience):
                self._silent = True
                worker.kill()
                return
            data = os.read(pipe, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        kind, text = line[:1], line[1:].decode(errors="surrogateescape")
        if kind == b"R":
            self._reading = text
        elif kind == b"C":
            self._changed(frozenset(map(int, text.split(","))))
        elif kind == b"P":
            self.heard.progress = msgspec.json.decode(text, type=Progress)
            self._progress(self.heard.progress)
        elif kind == b"Y":
            self.heard.caught_up = True
        elif kind == b"B":
            self._beat()
        elif kind == b"T":
            self._told(text)


def _close_input(worker: subprocess.Popen[bytes]) -> None:
    """That is how it is told to end. What it died before reading is not to be written any more."""
    assert worker.stdin is not None
    with suppress(OSError):
        worker.stdin.close()
