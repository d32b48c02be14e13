"""The process that retires snapshots by rules and archives commits, behind everybody else.

    python -P -m walrecover_daemon.upkeep        a Task as JSON on its standard input

Owns when which run is looked after, and its own place in the scheduler. What is done is
`walrecover.pruning`'s and `walrecover.mirroring`'s. It says, a JSON line each: what it begins, and
what came of it. It ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from walrecover import entries as model
from walrecover import retention, snapshot
from walrecover.errors import WalrecoverError
from walrecover.mirroring import keep_up
from walrecover.pruning import prune
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.vaults import Vault
from walrecover_daemon import guardfile
from walrecover_daemon.finding import Finder, Place, mark_of

ARCHIVE, RETENTION = "archive", "retention"
LONGEST_WAIT = 30.0


class Task(msgspec.Struct, frozen=True):
    """`guard`: the file of `--guard`, which was checked. `skipped`: [root, run] that an upkeep
    before this one died over."""

    roots: list[str]
    journal: str | None
    guard: str
    skipped: list[tuple[str, str]] = []


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """`at` 0: it begins. Else what came of it: snapshots retired and bytes freed, or the entry up
    to which the vault has the run and the bytes that were sent; or a problem."""

    directory: str
    run: str
    what: str
    at: float = 0.0
    amount: int = 0
    bytes: int = 0
    problem: str = ""


class _Over(Exception):
    """The daemon has ended."""


class Upkeep:
    def __init__(self, task: Task, guarded: guardfile.Guarded, say: Callable[[Line], None]) -> None:
        journal = Path(task.journal) if task.journal else None
        self._finder = Finder([Path(root) for root in task.roots], journal)
        self._skipped = {tuple(place) for place in task.skipped}
        self._guarded, self._say = guarded, say
        self._vault: Vault | None = None
        self._archived: dict[Place, str] = {}
        self._pruned: dict[Place, float] = {}

    def turn(self) -> None:
        """Look after every run for which something is due."""
        for place in self._finder.places():
            if place in self._skipped:
                continue
            run = self._finder.run(place)
            if self._guarded.archive:
                self._archive(place, run, self._guarded.archive)
            if rules := guardfile.rules_for(run.name, self._guarded.retention):
                self._retain(place, run, rules)
            _leave_if_over()

    def wait(self) -> float:
        """Seconds until the next look."""
        every = [one.every.seconds for one in self._guarded.retention]
        if self._guarded.archive:
            every.append(self._guarded.archive.every.seconds)
        return min([*every, LONGEST_WAIT])

    def _archive(self, place: Place, run: RunDir, section: guardfile.Archive) -> None:
        """Where there are entries that the vault lacks."""
        try:
            mark = mark_of(run.sequence)
        except OSError:
            return  # the follower says it
        if mark and mark == self._archived.get(place):
            return
        with self._telling(place, ARCHIVE) as told:
            if self._vault is None:
                self._vault = Vault(section.to)
            done = keep_up(run, self._vault, lambda name, size: _leave_if_over())
            bad = [f"{one.name} does not verify: {one.problem}" for one in done.damaged]
            told(done.entries, done.bytes, "; ".join(bad))
            self._archived[place] = mark

    def _retain(self, place: Place, run: RunDir, section: guardfile.Retention) -> None:
        """Where the rules let something go: only then is anything read back."""
        now = time.monotonic()
        if now < self._pruned.get(place, now):
            return
        self._pruned[place] = now + section.every.seconds
        try:
            rules = section.rules(_steps(run))
            if not _may_go(run, rules._replace(best=())):
                return
        except (WalrecoverError, OSError):
            return  # the follower says it
        with self._telling(place, RETENTION) as told:
            done = prune(run, rules, now=time.time())
            bad = [f"{one.name} does not read back: {one.problem}" for one in done.damaged]
            told(len(done.retired), done.freed if done.retired else 0, "; ".join(bad))

    @contextlib.contextmanager
    def _telling(self, place: Place, what: str) -> Iterator[Callable[[int, int, str], None]]:
        """What cannot be done is said, and tried again when it is due again."""
        self._say(Line(place.root, place.name, what))

        def told(amount: int, size: int, problem: str) -> None:
            self._say(Line(place.root, place.name, what, time.time(), amount, size, problem))

        try:
            yield told
        except (WalrecoverError, OSError) as error:
            told(0, 0, str(error))


def _steps(run: RunDir) -> frozenset[int]:
    entries = Sequence(run.sequence).read()
    return frozenset(commit.snapshot.step for commit in model.candidates(entries))


def _may_go(run: RunDir, rules: retention.Rules) -> bool:
    """Whether anything would go if all of it verified."""
    entries = Sequence(run.sequence).read()
    verdicts = retention.decide(
        entries,
        rules,
        now=time.time(),
        values={},
        verified=frozenset(ref.manifest for ref in snapshot.live(entries)),
        files=lambda ref: snapshot.listed(run, ref),
    )
    return any(not one.kept for one in verdicts)


def _leave_if_over(wait: float = 0.0) -> None:
    ready, _, _ = select.select([0], [], [], wait)
    if ready and not os.read(0, 4096):
        raise _Over


def _said(line: Line) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon hears it, and ends this process
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    task = msgspec.json.decode(_first_line(), type=Task)
    upkeep = Upkeep(task, guardfile.parse(task.guard.encode(), "--guard"), _said)
    while True:
        upkeep.turn()
        _leave_if_over(upkeep.wait())


def _first_line() -> bytes:
    found = b""
    while not found.endswith(b"\n") and (data := os.read(0, 1 << 16)):
        found += data
    return found


if __name__ == "__main__":
    with contextlib.suppress(_Over, BrokenPipeError, msgspec.DecodeError):
        main()
