"""Beats: what each rank is doing, in a page that others map.

Owns the page of one rank, written in a fraction of a microsecond and never synced, and reading it
from another process. Nothing is state here: a beat is gone with its attempt, and recovery never
looks at one. Must not import torch: whoever watches a run (`rehearse`, the supervisor) reads it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from walrecover.hangs import PHASES, Phase, Reading

_BEAT = struct.Struct("<QQd")
_PID = struct.Struct("<Q")


class Beat:
    """What this rank is doing: step, phase, when it last said so, and by which process."""

    def __init__(self, folder: Path, rank: int) -> None:
        fd = os.open(beat_path(folder, rank), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A hole is not enough: on a full disk SIGBUS ends whoever writes into one.
            os.posix_fallocate(fd, 0, mmap.PAGESIZE)
            self._map = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)
        self._step = 0
        self._map[_BEAT.size : _BEAT.size + _PID.size] = _PID.pack(os.getpid())
        self.say("starting")

    def say(self, phase: Phase, step: int | None = None) -> None:
        if step is not None:
            self._step = step
        # One copy of whole bytes: `pack_into` would clear the page first, and a reader, or
        # whoever looks after a kill, could find zeros.
        self._map[: _BEAT.size] = _BEAT.pack(self._step, PHASES.index(phase), time.monotonic())


class Page:
    """A rank's beat, mapped for reading. It keeps what was last said when the rank is gone."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, or ValueError while the page is still empty."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, _BEAT.size + _PID.size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    @property
    def pid(self) -> int:
        """The rank's process, as it sees itself; 0 for none yet."""
        pid: int = _PID.unpack(self._map[_BEAT.size :])[0]
        return pid

    def read(self) -> Reading:
        before = self._map[: _BEAT.size]
        while (now := self._map[: _BEAT.size]) != before:
            before = now
        step, phase, at = _BEAT.unpack(now)
        return Reading(step, PHASES[phase] if phase < len(PHASES) else "starting", at)

    def close(self) -> None:
        self._map.close()


def beat_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.beat"


def find_beats(folder: Path) -> dict[int, Path]:
    """The beats of an attempt's folder, by rank."""
    return {int(path.stem.removeprefix("rank-")): path for path in folder.glob("rank-*.beat")}


def furthest(folder: Path) -> int:
    """The last step that some rank of the attempt said it completed; 0 for none."""
    steps = [0]
    for path in find_beats(folder).values():
        try:
            page = Page(path)
        except (OSError, ValueError):
            continue
        steps.append(page.read().step)
        page.close()
    return max(steps)


__all__ = ["Beat", "Page", "Phase", "Reading", "beat_path", "find_beats", "furthest"]
