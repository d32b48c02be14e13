"""The process group: who this rank is, and the one meeting of all ranks, at `attach`.

Owns the use of torch.distributed. The store of the process group, not a collective, carries the
meeting, so that a missing rank can be named whatever the backend is.
"""

from __future__ import annotations

import datetime
import itertools
import os
import time
from typing import NamedTuple

import torch.distributed as dist

from walrecover.errors import BadInput, WalrecoverError

TIMEOUT_SECONDS = 60.0
_calls = itertools.count()


class RanksMissing(WalrecoverError):
    """Some ranks did not come to `attach` in time."""


class World(NamedTuple):
    rank: int
    size: int


def world() -> World:
    """This process's rank. Raises BadInput before the process group of several ranks exists."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size > 1:
        raise BadInput(
            f"WORLD_SIZE is {size}, but there is no process group: call walrecover.attach() after "
            f"torch.distributed.init_process_group()"
        )
    return World(0, 1)


class Meeting:
    """One call of `attach` over all ranks. Every rank makes the same calls in the same order."""

    def __init__(self, ranks: World, timeout: float = TIMEOUT_SECONDS) -> None:
        self.ranks = ranks
        self.timeout = timeout
        self._prefix = f"walrecover/{next(_calls)}"
        self._store = None
        if ranks.size > 1:
            self._store = dist.distributed_c10d._get_default_store()

    def share(self, what: str, value: str | None) -> str:
        """Rank 0's value, on every rank."""
        if self._store is None:
            assert value is not None
            return value
        key = f"{self._prefix}/{what}"
        if self.ranks.rank == 0:
            assert value is not None
            self._store.set(key, value)
            return value
        self._wait([key], lambda: "rank 0")
        return str(self._store.get(key).decode())

    def gather(self, what: str, value: str = "1") -> list[str]:
        """Every rank's value, by rank. Raises RanksMissing, naming those that did not come."""
        if self._store is None:
            return [value]
        self._store.set(f"{self._prefix}/{what}/{self.ranks.rank}", value)
        keys = [f"{self._prefix}/{what}/{rank}" for rank in range(self.ranks.size)]

        def missing() -> str:
            assert self._store is not None
            absent = [n for n, key in enumerate(keys) if not self._store.check([key])]
            return "rank " + ", ".join(map(str, absent))

        self._wait(keys, missing)
        return [self._store.get(key).decode() for key in keys]

    def _wait(self, keys: list[str], missing) -> None:  # type: ignore[no-untyped-def]
        assert self._store is not None
        deadline = time.monotonic() + self.timeout
        try:
            self._store.wait(keys, datetime.timedelta(seconds=self.timeout))
        except RuntimeError as error:
            if time.monotonic() < deadline - 1.0:
                raise RanksMissing(f"the store of the process group failed: {error}") from None
            raise RanksMissing(
                f"{missing()} did not come to walrecover.attach() within {self.timeout:.0f} s: "
                f"every rank must call it, after init_process_group()"
            ) from None
