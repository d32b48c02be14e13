"""How the ranks of one attempt agree without collectives: promises and announcements (rule 7).

Owns the files below `attempts/<attempt>/`. They tell, they are never state: losing any of them
costs a snapshot or a later stop, nothing else. Every rank, before it hands out step h, promises
not to decide about a step above h + 2 without reading again; rank 0 announces a pace or a stop
for a step above every promise, from its own boundary, so that no rank can have passed it (ranks
are coupled by their training: none is two steps ahead of another).
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Literal

import msgspec

from walrecover.files import create_if_absent, make_directory, storage
from walrecover.pace import Pace

AHEAD = 2
_SAME_TICK_NS = 20_000_000


class Announcement(msgspec.Struct, frozen=True):
    """`pace`: from `step` on, multiples of `value`. `stop`: at `step`, for signal `value`."""

    kind: Literal["pace", "stop"]
    step: int
    value: int


class Meeting:
    """This rank's side of the agreement. Every call is cheap; none waits."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder = folder
        self.rank = rank
        self.world = world
        self.paces: list[Pace] = []
        self.stop: Announcement | None = None
        self._seen: set[str] = set()
        self._requested = False
        self._stamp = -1
        with storage(f"cannot make {folder}"):
            make_directory(folder)
            self._promise = os.open(
                folder / f"rank-{rank:05d}.promise", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            os.pwrite(self._promise, struct.pack("<Q", AHEAD), 0)
        self._others: dict[int, int] = {}
        self._requests: set[int] = set()

    def promise(self, handing_out: int) -> None:
        """This rank begins step `handing_out`. Needed only where there are other ranks."""
        os.pwrite(self._promise, struct.pack("<Q", handing_out + AHEAD), 0)

    def free_step(self, completed: int) -> int | None:
        """The first step that no rank can have decided about; None before all have promised."""
        highest = completed if self.world > 1 else completed - 1
        for rank in range(self.world):
            if rank == self.rank:
                continue
            if rank not in self._others:
                try:
                    self._others[rank] = os.open(
                        self.folder / f"rank-{rank:05d}.promise", os.O_RDONLY | os.O_CLOEXEC
                    )
                except FileNotFoundError:
                    return None
            data = os.pread(self._others[rank], 8, 0)
            if len(data) < 8:
                return None
            highest = max(highest, struct.unpack("<Q", data)[0])
        return highest + 1

    def announce(self, kind: Literal["pace", "stop"], step: int, value: int) -> None:
        """Publish, from rank 0. Raises StorageFailed."""
        announcement = Announcement(kind, step, value)
        if self.world > 1:
            name = f"announced-{len(self._seen) + 1:05d}.json"
            with storage("cannot announce to the other ranks"):
                create_if_absent(self.folder / name, msgspec.json.encode(announcement))
            self._seen.add(name)
        self._take(announcement)

    def request_stop(self, signal: int) -> None:
        """Ask rank 0 to announce a stop: this rank got a signal."""
        if not self._requested:
            self._requested = True
            with storage("cannot ask for a stop"):
                create_if_absent(
                    self.folder / f"stop-{self.rank:05d}.{signal}", b"", written="", linked=""
                )

    def read(self) -> int | None:
        """Take in what the other ranks announced. Returns the signal that some rank asked to stop
        for."""
        stamp = os.stat(self.folder).st_mtime_ns
        if stamp != self._stamp or time.time_ns() - stamp < _SAME_TICK_NS:
            self._stamp = stamp
            for name in sorted(os.listdir(self.folder)):
                if name in self._seen:
                    continue
                if name.startswith("announced-"):
                    self._seen.add(name)
                    data = (self.folder / name).read_bytes()
                    self._take(msgspec.json.decode(data, type=Announcement))
                elif name.startswith("stop-"):
                    self._seen_request(name)
        return min(self._requests, default=None)

    def _seen_request(self, name: str) -> None:
        self._requests.add(int(name.rpartition(".")[2]))

    def _take(self, announcement: Announcement) -> None:
        if announcement.kind == "stop":
            self.stop = self.stop or announcement
        else:
            self.paces.append(Pace(announcement.step, announcement.value))
