"""What dead ranks leave in memory: each saver says which steps it could save, and they save the
newest that all of them have. Votes for different steps would never meet.

Owns the files by which they tell each other, beside the attempt's other files. They tell, they are
never state: where one is lost, the last commit stands.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from walrecover.saver import roll

PATIENCE_SECONDS = 60.0


class Estate:
    """One rank's share in it."""

    def __init__(self, meeting: Path, rank: int, world: int) -> None:
        self._meeting, self._rank, self._world = meeting, rank, world
        self._since: float | None = None
        self._common: int | None = None
        self.settled = world == 1

    def settle(self, steps: Callable[[], Collection[int]]) -> int | None:
        """Say which steps this rank has, the first time. Returns the one that all of them save, or
        None: as long as `settled` is not set, ask again."""
        if self._since is None:
            self._since = time.monotonic()
            self._say(sorted(steps()))
        said = {rank: self._read(rank) for rank in range(self._world)}
        spoken = [set(kept) for kept in said.values() if kept is not None]
        if len(spoken) == self._world:
            self.settled = True
            self._common = max(set.intersection(*spoken), default=None)
            return self._common
        self.settled = self._in_vain([rank for rank, kept in said.items() if kept is None])
        return None

    def renounce(self) -> None:
        """This rank leaves nothing, since its training said good-bye: nobody need wait for it."""
        if not self.settled:
            self._say([])
            self.settled = True

    def has_voted(self, rank: int) -> bool:
        """Whether that rank has cast all the votes that it will: who says what it leaves has saved
        what it was to, and there is no step that all have."""
        return self._common is None and self._read(rank) is not None

    def _say(self, steps: list[int]) -> None:
        """On a full disk nothing is said, and the others wait in vain. The folder is there since
        this saver was enrolled; where it was taken away it is not made again."""
        path = self._path(self._rank)
        beside = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            beside.write_bytes(msgspec.json.encode(steps))
            beside.replace(path)

    def _in_vain(self, silent: Collection[int]) -> bool:
        assert self._since is not None
        waited = time.monotonic() - self._since
        return waited > PATIENCE_SECONDS or any(
            roll.is_missing(self._meeting, rank, waited) for rank in silent
        )

    def _path(self, rank: int) -> Path:
        return self._meeting / f"rank-{rank:05d}.left"

    def _read(self, rank: int) -> list[int] | None:
        try:
            return msgspec.json.decode(self._path(rank).read_bytes(), type=list[int])
        except (OSError, msgspec.DecodeError):
            return None
