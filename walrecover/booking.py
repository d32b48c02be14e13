"""Reading streams into ledgers: safely, and long ones by several processes at once.

Owns who reads. What may be damaged is never read in this process first: small journals are examined
by a child, as everywhere; of large ones a child makes the ledger itself, and what it cannot read to
the end is examined afterwards. What is read is `ledger`'s.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from walrecover.errors import WalrecoverError
from walrecover.events import StepCompleted
from walrecover.journal import START, Reader, StreamId, examine_all, metapages
from walrecover.journal.environment import DATA
from walrecover.ledger import Book

LARGE_BYTES = 64 << 20
"""Of all streams together: from here on several processes read them."""

TAIL_EVENTS = 64

_CHILD = """
import sys
sys.path[:] = sys.argv[1:]
from walrecover import booking
booking.serve()
"""


class Wanted(NamedTuple):
    """The ledger of a stream: its steps behind `base` and through `last`."""

    stream: StreamId
    path: Path
    base: int
    last: int


class Found(NamedTuple):
    """`book` None where nothing can be read; `problem`: what is wrong with the stream, or ""."""

    book: Book | None
    problem: str = ""


class Job(msgspec.Struct, frozen=True):
    """For a child: the ledger of a stream, or of `last` None its last step alone."""

    path: str
    base: int = 0
    last: int | None = None


class Answer(msgspec.Struct, frozen=True):
    book: Book | None = None
    last: int = 0


def books(wanted: Sequence[Wanted]) -> dict[StreamId, Found]:
    """The ledger of each stream, and what is wrong with it."""
    whole = _at_once({one.stream: Job(str(one.path), one.base, one.last) for one in wanted})
    rest = [one for one in wanted if one.stream not in whole]
    reports = examine_all([(one.stream, one.path) for one in rest]) if rest else {}
    found = {stream: Found(answer.book) for stream, answer in whole.items()}
    for one in rest:
        report = reports[one.stream]
        problem = report.problem or ""
        book: Book | None = None
        if report.readable:
            try:
                book = _read(one.path, one.base, one.last, report.last)
            except (WalrecoverError, OSError) as error:
                problem = problem or str(error)
        found[one.stream] = Found(book, problem)
    return found


def last_steps(streams: Sequence[tuple[StreamId, Path]]) -> dict[StreamId, int]:
    """The last step that each stream has; 0 for none, or where it cannot be read."""
    answers = _at_once({stream: Job(str(path)) for stream, path in streams})
    rest = [(stream, path) for stream, path in streams if stream not in answers]
    reports = examine_all(rest) if rest else {}
    found = {stream: answer.last for stream, answer in answers.items()}
    for stream, path in rest:
        try:
            report = reports[stream]
            found[stream] = _last_step(path, report.last) if report.readable else 0
        except (WalrecoverError, OSError):
            found[stream] = 0
    return found


def _at_once(jobs: Mapping[StreamId, Job]) -> dict[StreamId, Answer]:
    """What comes of the jobs that go through in a process of their own. None where the streams are
    small: starting processes would take longer."""
    if sum(_size(job) for job in jobs.values()) < LARGE_BYTES:
        return {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(jobs))) as pool:
        answers = list(pool.map(_in_a_child, jobs.values()))
    return {
        stream: answer for stream, answer in zip(jobs, answers, strict=True) if answer is not None
    }


def _in_a_child(job: Job) -> Answer | None:
    """None where the child ended with what it read, or found damage: that is examined."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _CHILD, *sys.path],
        input=msgspec.msgpack.encode(job),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if ended.returncode:
        return None
    return msgspec.msgpack.decode(ended.stdout, type=Answer)


def serve() -> None:
    """The child's whole life."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    path = Path(job.path)
    if job.last is None:
        answer = Answer(last=_last_step(path, None))
    elif problem := metapages.inspect(path):
        raise problem
    else:
        answer = Answer(_read(path, job.base, job.last, None))
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))


def _size(job: Job) -> int:
    try:
        return os.stat(Path(job.path) / DATA).st_size
    except OSError:
        return 0


def _read(path: Path, base: int, last: int, upto: int | None) -> Book:
    book = Book(base, last)
    with Reader(path) as reader:
        for payloads in reader.payloads(upto=upto):
            book.read(payloads)
    return book


def _last_step(path: Path, upto: int | None) -> int:
    """Looks at the stream's end first."""
    with Reader(path) as reader:
        last, look = reader.head().lsn if upto is None else upto, TAIL_EVENTS
        while True:
            first = max(0, last - look)
            after = reader.cursor_at(first) if first else START
            steps = _steps(event for _, event in reader.read(after, last))
            if steps or not first:
                return max(steps, default=0)
            look *= 8


def _steps(events: Iterable[Any]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepCompleted)]
