"""The child process that reads suspect streams, and the pipe that it reports through.

Owns starting it, what it does and what the two say to each other (a line of JSON each). Must not
judge: `examine` draws the conclusions.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from walrecover.errors import WalrecoverError
from walrecover.journal import environment as environments
from walrecover.journal.reader import CHUNK, Reader
from walrecover.journal.stream import Cursor, StreamId

if TYPE_CHECKING:
    from subprocess import Popen

# Signals by which damaged pages end a process that reads them; another one proves nothing.
BY_DAMAGE = frozenset((signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL))

# Without `site`, which takes longer than the rest; the parent's path stands in for it.
_SPAWNED = """
import sys
sys.path[:] = sys.argv[1:]
try:
    from walrecover.journal import inspector
    inspector.serve()
except BaseException as error:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    sys.stdout.buffer.write(f"!{words}\\n".encode(errors="replace"))
    sys.exit(1)
"""
START_SECONDS = 60.0
"""For the child to say its first word: a busy machine starts it slowly."""

_LAST_WORDS = b"!"
"""In front of a line that is no JSON: the error that ended the child."""


EXAMINES = "WALRECOVER_EXAMINES"
"""In the environment of a spawned child, so that it can be told from what the user has started."""

_spare: Popen[bytes] | None = None


def prepare() -> None:
    """Start a child now that the next examination finds ready: an interpreter takes longer to
    start than most streams to be read. It ends with this process, or by `dismiss`."""
    global _spare
    if _spare is None or not _is_ready(_spare):
        dismiss()
        _spare = _spawn()


def prepared() -> int | None:
    """The pid of the child that waits for an examination."""
    return _spare.pid if _spare else None


def dismiss() -> None:
    """End the child that waits, if there is one."""
    global _spare
    spare, _spare = _spare, None
    if spare is not None:
        _end(spare)


def _take_spare() -> Popen[bytes] | None:
    global _spare
    spare, _spare = _spare, None
    if spare is not None and not _is_ready(spare):
        _end(spare)
        return None
    return spare


def _is_ready(spare: Popen[bytes]) -> bool:
    """It lives: without a job it says nothing until it ends. Its status says less, for whoever
    waits for all children may have it by now."""
    assert spare.stdout is not None
    poll = select.poll()
    poll.register(spare.stdout, select.POLLIN)
    return not poll.poll(0)


def _end(spare: Popen[bytes]) -> None:
    assert spare.stdin is not None and spare.stdout is not None
    spare.kill()
    spare.stdin.close()
    spare.stdout.close()
    spare.wait()


class Job(msgspec.Struct, frozen=True):
    """A stream to read from a cursor on, `chunk` events at a time."""

    stream: StreamId
    path: str
    after: Cursor
    chunk: int = CHUNK


class Said(msgspec.Struct, frozen=True):
    """Job `index` was read up to `cursor`; at its end, what is wrong behind that."""

    index: int
    cursor: Cursor
    ended: bool = False
    kind: str = ""
    problem: str | None = None


def answer(jobs: list[Job], out: int) -> None:
    """In the child: read every stream, and say how far it is good."""
    for index, job in enumerate(jobs):
        cursor = job.after
        _say(out, Said(index, cursor))
        try:
            with Reader(Path(job.path), job.stream, chunk=job.chunk) as reader:
                for _, cursor in reader.batches(job.after):
                    _say(out, Said(index, cursor))
            _say(out, Said(index, cursor, ended=True))
        except WalrecoverError as error:
            _say(out, Said(index, cursor, True, type(error).__name__, str(error)))


def _say(out: int, said: Said) -> None:
    line = memoryview(msgspec.json.encode(said) + b"\n")
    while line:
        line = line[os.write(out, line) :]


def _say_last(out: int, error: BaseException) -> None:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    with contextlib.suppress(OSError):
        os.write(out, _LAST_WORDS + words.encode(errors="replace") + b"\n")


def serve() -> None:
    """The spawned child's whole life."""
    _die_quietly()
    if asked := sys.stdin.buffer.read():  # else the parent has ended
        answer(msgspec.json.decode(asked, type=list[Job]), 1)


def _die_quietly() -> None:
    """No core file, no last words of LMDB, and none of a handler that the parent had installed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in BY_DAMAGE:
        signal.signal(number, signal.SIG_DFL)


class Inspector:
    """In the parent: the child, ended with the block that it is used in."""

    def __init__(self, pid: int, pipe: int, wait: Callable[[], int]) -> None:
        self._pid = pid
        self._pipe = pipe
        self._wait = wait
        self._status: int | None = None
        self.silent = False
        self.last_words = ""

    @classmethod
    def start(cls, jobs: list[Job]) -> Inspector:
        if _may_fork():
            return cls(*_fork(jobs))
        return cls(*_ask(_take_spare() or _spawn(), jobs))

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is None:
            self._kill()
            self.status()

    def said(self, patience: float) -> Iterator[Said]:
        """What it says, until it ends or was silent for too long (then it is killed). `patience`:
        seconds, from its first word on."""
        decode = msgspec.json.Decoder(Said).decode
        rest = b""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        seconds = START_SECONDS
        while True:
            if not poll.poll(seconds * 1000):
                self.silent = True
                self._kill()
                return
            data = os.read(self._pipe, 1 << 16)
            if not data:
                return
            seconds = patience
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(_LAST_WORDS):
                    self.last_words = line[1:].decode(errors="replace")
                else:
                    yield decode(line)

    def status(self) -> int:
        """Its exit status, negative for a signal. Waits for it."""
        if self._status is None:
            os.close(self._pipe)
            self._status = self._wait()
        return self._status

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def _may_fork() -> bool:
    """A fork is the faster child, where nothing in this process can trip over it."""
    return (
        len(os.listdir("/proc/self/task")) == 1
        and "torch" not in sys.modules
        and "numpy" not in sys.modules
        and not environments.any_open()
    )


def _fork(jobs: list[Job]) -> tuple[int, int, Callable[[], int]]:
    pipe, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(pipe)
            _die_quietly()
            answer(jobs, out)
            status = 0
        except BaseException as error:
            _say_last(out, error)
        finally:
            os._exit(status)
    os.close(out)
    return pid, pipe, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _spawn() -> Popen[bytes]:
    import subprocess  # most processes never need it, and it is slow to import

    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SPAWNED, *map(os.path.abspath, sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, EXAMINES: "1"},
    )


def _ask(child: Popen[bytes], jobs: list[Job]) -> tuple[int, int, Callable[[], int]]:
    assert child.stdin is not None and child.stdout is not None
    pipe = os.dup(child.stdout.fileno())
    child.stdout.close()
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(msgspec.json.encode(jobs))
    return child.pid, pipe, child.wait
