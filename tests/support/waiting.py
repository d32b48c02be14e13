"""Waiting for something to come true: the one place where tests poll, always with a deadline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from walrecover.commits import key_of
from walrecover.entries import CommitEntry
from walrecover.processes import is_alive
from walrecover.rundir import RunDir, list_runs
from walrecover.saver.messages import Assignment
from walrecover.saver.offers import settled
from walrecover.saver.roll import MODULE
from walrecover.sequence import Sequence

Found = TypeVar("Found")


def await_savers(folder: Path) -> None:
    """Until nobody saves anything below this folder any more for a training that has ended. Who
    only offers what is saved, to the next attempt, is not waited for."""
    wait_until(lambda: not any(Path(run.root).is_relative_to(folder) for run in _bereaved()))


def _bereaved() -> Iterator[RunDir]:
    """The runs for which savers on this machine are at work whose training process is gone."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            words = line.read_bytes().split(b"\0")[:-1]
            if MODULE.encode() in words:
                given = msgspec.json.decode(words[-1], type=Assignment)
                run = RunDir(Path(given.root), given.run)
                if is_alive(given.trainer) is False and not settled(run, [int(line.parent.name)]):
                    yield run


def wait_until(true: Callable[[], Found], seconds: float = 60.0, pause: float = 0.001) -> Found:
    """What was true at last. A deadline is for what never comes: it may be generous. Looking takes
    a fifth of a processor at most, for what is waited for may be the last to get one."""
    began = time.monotonic()
    deadline = began + seconds
    while not (found := true()):
        now = time.monotonic()
        assert now < deadline, "it never came true"
        time.sleep(max(pause, 4 * (now - began)))
        began = time.monotonic()
    return found


def last_commit() -> int:
    """The step of the newest commit of the only run below this folder; 0 for none."""
    root = Path(".walrecover")
    (name,) = list_runs(root)
    found = Sequence(RunDir(root, name).sequence).read()
    return max((key_of(one).step for one in found if isinstance(one, CommitEntry)), default=0)
