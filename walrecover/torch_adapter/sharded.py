"""An iterable dataset whose position is a shard and an offset in it.

Owns the order of the shards, their division among ranks and workers, and the state. How a shard is
read is the user's function.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from xxhash import xxh3_128_digest

from walrecover.consumed import Facts
from walrecover.errors import BadInput, Mismatch
from walrecover.order import Order, check_shares
from walrecover.torch_adapter.ranks import World, world

FORMAT = 1


class ShardedDataset(IterableDataset[Any]):
    """Reads shards one after the other, in another order in each epoch.

        data = ShardedDataset(paths, read, seed=1)
        for sample in run.loop(data): ...
        for batch in run.loop(DataLoader(data, 32)): ...

    `shards`: names or other plain values. `read(shard, offset)`: the shard's samples from number
    `offset` on, always in the same order. The order of the shards is a function of (seed, epoch,
    their number), or with `shuffle=False` their own; rank *r* of W takes every W-th, from the
    *r*-th on. The epoch is the number of passes that `run.loop` has begun over it in the run;
    without a `run.loop`, the number of passes that came to their end; after `set_epoch`, what was
    set.

    Its state is a shard and an offset, so that a resumed run opens one shard. Without loader
    workers: those read ahead, each its share of the shards, and a loader with workers is read again
    from its beginning.

    Raises BadInput where so many ranks cannot share the shards, and says how many can.
    """

    def __init__(
        self,
        shards: Sequence[Any],
        read: Callable[[Any, int], Iterable[Any]],
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if (rank is None) != (world is None) or not 0 <= (rank or 0) < (world or 1):
            raise BadInput(f"rank {rank} of a world of {world}: give both, or neither")
        self.shards, self.read = list(shards), read
        self.seed, self.shuffle = int(seed), bool(shuffle)
        self._given = None if rank is None or world is None else World(rank, world)
        self._set: int | None = None
        self._passes = self._place = self._offset = 0
        self._begin_at: tuple[int, int] | None = None
        Order(self.seed, 0, len(self.shards))  # refuses none
        if self._given is not None:
            check_shares(len(self.shards), self._given.size, "shards")

    def set_epoch(self, epoch: int) -> None:
        """From now on every pass is of this epoch, until another is set."""
        self._set = int(epoch)

    def begin_pass(self, passes: int) -> None:
        """The next pass is a whole one, with so many before it: `run.loop` counts."""
        self._passes, self._begin_at = passes, (0, 0)

    @property
    def epoch(self) -> int:
        return self._passes if self._set is None else self._set

    def __iter__(self) -> Iterator[Any]:
        begin, self._begin_at = self._begin_at, None
        if begin is None:
            begin = (0, 0)
            if self._place == len(self.shards) // self._ranks().size:
                self._passes = self.epoch + 1  # the pass before came to its end
        self._place, self._offset = begin
        return self._pass(self._mine(), *begin)

    def _mine(self) -> list[Any]:
        """The shards that are read here, in order."""
        rank, size = self._ranks()
        check_shares(len(self.shards), size, "shards")
        count = len(self.shards)
        order = Order(self.seed, self.epoch, count) if self.shuffle else int
        mine = [self.shards[order(place)] for place in range(rank, count, size)]
        worker = get_worker_info()
        return mine if worker is None else mine[worker.id :: worker.num_workers]

    def _pass(self, shards: list[Any], place: int, offset: int) -> Iterator[Any]:
        for n in range(place, len(shards)):
            self._place, self._offset = n, offset
            for sample in self.read(shards[n], offset):
                self._offset += 1
                yield sample
            offset = 0
        self._place, self._offset = len(shards), 0

    def state_dict(self) -> dict[str, Any]:
        """Where the pass stands: behind `offset` samples of its shard number `place`."""
        return {
            "format": FORMAT,
            "epoch": self.epoch,
            "place": self._place,
            "offset": self._offset,
            **self._fixed(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass begins there. Raises Mismatch for a state of other shards or ranks."""
        for name, value in self._fixed().items():
            if state.get(name) != value:
                raise Mismatch(
                    f"the sharded dataset's {name} was {state.get(name)} and is {value}: it would "
                    f"go on in another order than it began"
                )
        self._passes = int(state["epoch"])
        self._set = None if self._set is None else self._passes
        self._begin_at = self._place, self._offset = int(state["place"]), int(state["offset"])

    def _fixed(self) -> dict[str, Any]:
        return {"seed": self.seed, "shards": self._digest().hex(), "world": self._ranks().size}

    def _ranks(self) -> World:
        return self._given or world()

    def _digest(self) -> bytes:
        names = json.dumps([self.shuffle, *self.shards], default=repr)
        return xxh3_128_digest(names.encode())

    def describe(self) -> Facts:
        """What fixes the order, as the journal keeps it."""
        return Facts("item", seed=self.seed, digest=self._digest(), world=self._ranks().size)


def of(value: Any) -> ShardedDataset | None:
    """The dataset whose state is the position of what is read: itself, or that of a loader without
    workers, which stands behind the samples of the batches that were handed out."""
    if isinstance(value, ShardedDataset):
        return value
    if not isinstance(value, DataLoader) or not isinstance(value.dataset, ShardedDataset):
        return None
    plain = type(value).__iter__ is DataLoader.__iter__ and value.num_workers == 0
    return value.dataset if plain else None
