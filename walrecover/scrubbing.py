"""Reading committed snapshots back from the disk, and telling what has rotted.

Owns one reading, what it leaves behind (specs/21-scrubbing.md), and the memory of the last ones.
The order is `scrub`'s; the process's place in the scheduler, and waiting, are the caller's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from walrecover import entries as model
from walrecover import scrub, snapshot
from walrecover.entries import Entry, SnapshotRef
from walrecover.errors import Corrupt, WalrecoverError
from walrecover.files import open_regular, replace_file
from walrecover.references import distrust
from walrecover.rundir import RunDir
from walrecover.scrub import Item, Reading
from walrecover.sequence import Sequence

_MEMORY = "scrubbed.json"


class Scrubbed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A snapshot was read back. `problem` "": it is whole. `damaged`: its bytes are other ones,
    which what could not be read does not prove. `newest`: recovery would begin with it. `news`: the
    last reading said something else."""

    run: str
    name: str
    step: int
    manifest: str
    bytes: int
    seconds: float
    at: float
    problem: str = ""
    damaged: bool = False
    newest: bool = False
    news: bool = False


class Scrubber:
    """Over all runs of one `.walrecover`. `told` hears of every reading."""

    def __init__(
        self,
        root: Path,
        told: Callable[[Scrubbed], object],
        *,
        cycle: float = scrub.CYCLE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._told, self._cycle, self._clock = root, told, cycle, clock
        memory = _load(root)
        self._readings, self._deadly = memory.readings, memory.begun
        self._items: list[Item] = []
        self._next_look = 0.0

    def turn(self) -> float:
        """Read one snapshot, if one is due. Returns the seconds until the next look: 0 where there
        may be more to do. A run that cannot be read, or goes meanwhile, is passed over."""
        self._look()
        item, wait = scrub.next_turn(self._items, self._readings, self._clock(), self._cycle)
        if item is None:
            return wait
        self._store(begun=item.key)
        done = read(self._run(item.run), item, mapped=item.key != self._deadly)
        if done is None:
            self._items.remove(item)
            return 0.0
        before = self._readings.get(item.key, Reading(0.0))
        done = msgspec.structs.replace(
            done, at=self._clock(), news=bool(done.problem) != bool(before.problem)
        )
        self._readings[item.key] = Reading(done.at, done.problem, done.damaged)
        self._store()
        self._told(done)
        return 0.0

    def _look(self) -> None:
        """Which snapshots there are; not again with every turn, there may be many runs."""
        if time.monotonic() >= self._next_look:
            names = _runs_below(self._root)
            self._items = [item for name in names for item in items_of(self._run(name))]
            self._next_look = time.monotonic() + scrub.LOOK_SECONDS

    def _run(self, name: str) -> RunDir:
        return RunDir(self._root, name)

    def _store(self, begun: str = "") -> None:
        live = {item.key for item in self._items}
        self._readings = {key: one for key, one in self._readings.items() if key in live}
        with contextlib.suppress(OSError):  # a cache: without it all is read again
            data = msgspec.json.encode(_Memory(self._readings, begun)) + b"\n"
            replace_file(self._root / _MEMORY, data)


def remembered(root: Path) -> dict[str, Reading]:
    """The last reading of each snapshot below a `.walrecover`, by run and manifest."""
    return _load(root).readings


def _runs_below(root: Path) -> list[str]:
    """Those that may be looked into."""
    try:
        names = [name for name in os.listdir(root / "runs") if model.is_run_name(name)]
    except OSError:
        return []
    return [name for name in names if os.access(root / "runs" / name / "sequence", os.X_OK)]


def items_of(run: RunDir) -> list[Item]:
    """The committed snapshots of a run that are not retired; none where they cannot be told."""
    try:
        entries = Sequence(run.sequence).read()
    except (WalrecoverError, OSError):
        return []
    void = model.retired(entries)
    first = next(iter(model.candidates(entries)), None)
    return [
        Item(run.name, commit.snapshot, commit.at, commit == first)
        for commit in model.commits(entries)
        if commit.snapshot.manifest not in void
    ]


def read(run: RunDir, item: Item, *, mapped: bool = True) -> Scrubbed | None:
    """Read a snapshot back from the disk. None where it was retired meanwhile. `mapped`: as for
    `snapshot.verify`."""
    began, size, problem, damaged = time.monotonic(), 0, "", False
    try:
        listed = snapshot.load_manifest(run, item.ref).files()
        _forget(run, listed)
        size = snapshot.verify(run, item.ref, mapped=mapped).bytes()
        _forget(run, listed)
    except Corrupt as error:
        problem, damaged = str(error), True
    except (WalrecoverError, OSError) as error:
        problem = f"{item.ref.name} cannot be read: {error}"
    if problem:
        try:
            entries = Sequence(run.sequence).read()
        except (WalrecoverError, OSError):
            return None
        if item.ref not in snapshot.live(entries):
            return None
        if damaged:
            _distrust(run, entries, item.ref)
    return Scrubbed(
        run=run.name,
        name=item.ref.name,
        step=item.ref.step,
        manifest=item.ref.manifest,
        bytes=size,
        seconds=time.monotonic() - began,
        at=0.0,
        problem=problem,
        damaged=damaged,
        newest=item.newest,
    )


def _distrust(run: RunDir, entries: list[Entry], ref: SnapshotRef) -> None:
    newest = model.newest_attempt(entries)
    if newest is not None:
        distrust(run, newest.number, newest.nonce, ref.name)


def _forget(run: RunDir, listed: Iterable[str]) -> None:
    """Drop the files' pages from the kernel's cache, so that the disk is read."""
    for path in listed:
        with contextlib.suppress(OSError, Corrupt):
            fd = open_regular(run.snapshots, path)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


class _Memory(msgspec.Struct, omit_defaults=True):
    """`scrubbed.json`. `begun`: what was being read. What a scrubber died over (a page that cannot
    be read is a SIGBUS where it is mapped) the next one reads in another way."""

    readings: dict[str, Reading]
    begun: str = ""


def _load(root: Path) -> _Memory:
    try:
        return msgspec.json.decode((root / _MEMORY).read_bytes(), type=_Memory)
    except (OSError, msgspec.MsgspecError):
        return _Memory({})
