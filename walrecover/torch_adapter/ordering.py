"""A batch sampler whose order is global: the same samples make the same batch, whatever the number
of ranks.

Owns drawing indices in blocks, and the sampler's state. The order itself is `order`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler
from xxhash import xxh3_128

from walrecover.consumed import Facts, Handed
from walrecover.errors import BadInput, Mismatch
from walrecover.order import Draws, Layout, Order, Range, cumulative, kept
from walrecover.torch_adapter.ranks import World, world

try:
    import numpy as np
except ImportError:  # torch does without it as well
    arrays: Any = torch
else:
    arrays = np

FORMAT = 1
FIRST_BLOCK, BLOCK = 256, 8192  # samples: a resume waits for the first


class Drawn(NamedTuple):
    """A rank's part of a global batch: the samples, and what of the epoch they are."""

    samples: list[int]
    handed: Handed


class GlobalBatchSampler(Sampler[list[int]]):
    """Batches in an order that is a function of (seed, epoch, length) alone.

        loader = DataLoader(dataset, batch_sampler=GlobalBatchSampler(dataset, 64, seed=1))

    `data`: the dataset, or its length. `batch`: the size of the *global* batch; each rank takes an
    equal, contiguous part of it. `tail`: what happens to a last batch that is not full: "keep",
    "drop", or "pad" (with samples from the epoch's beginning). `shuffle`: False gives positions in
    their own order. `weights`: draw samples by these weights, with replacement, `samples` of them
    an epoch (as many as there are weights, unless given).

    The epoch is the number of passes that `run.loop` has begun over it in the run; without a
    `run.loop`, the number of passes that came to their end; after `set_epoch`, what was set.
    Rank and world are those of torch.distributed, or what is given. The state is a position.

    Raises BadInput where so many ranks cannot share such batches, and says how many can.
    """

    def __init__(
        self,
        data: Sized | int,
        batch: int,
        *,
        seed: int = 0,
        tail: str = "keep",
        shuffle: bool = True,
        weights: Sequence[float] | None = None,
        samples: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        count = data if isinstance(data, int) else len(data)
        if weights is not None and len(weights) != count:
            raise BadInput(f"there are {len(weights)} weights for {count} samples")
        if samples is not None and weights is None:
            raise BadInput("samples= says how many to draw by weights=, which are not given")
        if (rank is None) != (world is None) or not 0 <= (rank or 0) < (world or 1):
            raise BadInput(f"rank {rank} of a world of {world}: give both, or neither")
        self.layout = Layout(count if samples is None else samples, int(batch), tail)
        self.seed = int(seed)
        self.shuffle = bool(shuffle)
        self._count = count  # of samples to draw from
        self._sums = (
            None if weights is None else arrays.asarray(cumulative(weights), dtype=arrays.float64)
        )
        self._given = None if rank is None or world is None else World(rank, world)
        self._set: int | None = None
        self._passes = 0
        self._given_out = 0
        self._begin_at = 0
        Order(self.seed, 0, self.layout.length)  # refuses a length that cannot be ordered
        self.layout.check(self._given.size if self._given else 1)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.layout.batches

    def __iter__(self) -> Iterator[list[int]]:
        """One pass, without a `run.loop`: from where `load_state_dict` says, else a whole one."""
        begin, self._begin_at = self._begin_at, 0
        self._given_out = begin
        walk = self.walk(self.epoch(self._passes), begin)
        return self._pass(walk)

    def _pass(self, walk: Iterator[Drawn]) -> Iterator[list[int]]:
        for samples, _ in walk:
            self._given_out += 1
            yield samples
        self._passes += 1
        self._given_out = 0

    def set_epoch(self, epoch: int) -> None:
        """From now on every pass is of this epoch, until another is set."""
        self._set = int(epoch)

    def epoch(self, passes: int) -> int:
        """The epoch of a pass with so many before it."""
        return passes if self._set is None else self._set

    def state_dict(self) -> dict[str, Any]:
        """Where a pass without `run.loop` stands: the epoch, and the global batches given out."""
        return {
            "format": FORMAT,
            "epoch": self.epoch(self._passes),
            "batches": self._given_out,
            **self._fixed(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass begins there. Raises Mismatch for a state of another order."""
        for name, value in self._fixed().items():
            if state.get(name) != value:
                raise Mismatch(
                    f"the sampler's {name} was {state.get(name)} and is {value}: it would go on "
                    f"in another order than it began"
                )
        self._passes = int(state["epoch"])
        self._set = None if self._set is None else self._passes
        self._begin_at = self._given_out = int(state["batches"])

    def _fixed(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "length": self.layout.length,
            "batch": self.layout.batch,
            "tail": self.layout.tail,
            "order": self._order_digest(),
        }

    def describe(self) -> Facts:
        """What fixes the order, as the journal keeps it."""
        layout = self.layout
        return Facts(
            kind="global",
            length=layout.length,
            batch=layout.batch,
            seed=self.seed,
            digest=bytes.fromhex(self._order_digest()),
            dropped=layout.length - layout.consumed,
            world=self._ranks().size,
        )

    def _order_digest(self) -> str:
        how = xxh3_128(f"{self.layout.tail}/{self.shuffle}/{self._count}".encode())
        if self._sums is not None:
            how.update(struct.pack(f"<{len(self._sums)}d", *self._sums.tolist()))
        return str(how.hexdigest())

    def _ranks(self) -> World:
        return self._given or world()

    # -- batches ---------------------------------------------------------------------------------

    def walk(self, epoch: int, count: int = 0, skips: Iterable[Range] = ()) -> Iterator[Drawn]:
        """This rank's part of each global batch of an epoch, those behind the first `count`.

        `skips`: positions that are left out, by whole global batches, as if they were not there.
        Raises BadInput where so many ranks cannot share the batches.
        """
        rank, size = self._ranks()
        self.layout.check(size)
        left_out = self.layout.left_out(skips)
        return self._batches(self._sampled(epoch), kept(left_out, count), left_out, rank, size)

    def _batches(
        self, sampled: Any, number: int, left_out: tuple[Range, ...], rank: int, size: int
    ) -> Iterator[Drawn]:
        layout, block = self.layout, FIRST_BLOCK
        per = layout.batch // size
        bounds = [*left_out, (layout.batches, layout.batches)]
        before = dict(zip((stop for _, stop in left_out), left_out, strict=True))
        behind = left_out[-1:] if left_out and left_out[-1][1] == layout.batches else ()
        last = behind[0][0] - 1 if behind else layout.batches - 1
        for end, resumed in bounds:
            while number < end:
                upto = min(number + max(1, block // per), end)
                for samples, start, stop in self._block(sampled, number, upto, rank, size):
                    out = [before[number]] if number in before else []
                    out += behind if number == last else ()
                    yield Drawn(samples, self._handed(samples, start, stop, out))
                    number += 1
                block = min(2 * block, BLOCK)
            number = max(number, resumed)

    def _block(
        self, sampled: Any, first: int, upto: int, rank: int, size: int
    ) -> Iterator[tuple[list[int], int, int]]:
        """The samples and positions of some batches, drawn together. Only the last can be short."""
        parts = [self.layout.part(number, rank, size) for number in range(first, upto)]
        (start, stop), batch = parts[0], self.layout.batch
        ahead = (len(parts) - 1) * batch
        if parts[-1] != (start + ahead, stop + ahead):
            yield from chain(
                self._block(sampled, first, upto - 1, rank, size),
                self._block(sampled, upto - 1, upto, rank, size),
            )
            return
        within = arrays.arange(start, stop)
        starts = arrays.arange(len(parts)) * batch
        positions = (starts.reshape(-1, 1) + within).reshape(-1)
        if parts[-1][1] > self.layout.length:  # padding
            positions = positions % self.layout.length
        rows = sampled(positions).reshape(len(parts), -1)
        for samples, (begin, end) in zip(rows.tolist(), parts, strict=True):
            yield samples, begin, end

    def _handed(self, samples: list[int], start: int, stop: int, out: Sequence[Range]) -> Handed:
        length = self.layout.length
        skipped = tuple(self.layout.positions(batches) for batches in out)
        if stop <= length:
            return Handed(samples, ((start, stop),), (), skipped)
        inside = ((start, length),) if start < length else ()
        return Handed(samples, inside, ((max(start, length), stop),), skipped)

    def _sampled(self, epoch: int) -> Any:
        """From an array of positions to their samples."""
        if self._sums is not None:
            sums = arrays.asarray(self._sums, dtype=arrays.float64)
            draws = Draws(self.seed, epoch, sums)

            def drawn(positions: Any) -> Any:
                bits = arrays.asarray(draws.bits(positions), dtype=arrays.float64)
                found = arrays.searchsorted(sums, draws.point(bits), side="right")
                return found.clip(0, self._count - 1)

            return drawn
        if not self.shuffle:
            return lambda positions: positions
        order = Order(self.seed, epoch, self.layout.length)

        def ordered(positions: Any) -> Any:
            found = order.once(positions)
            while (outside := found >= order.length).any():
                found[outside] = order.once(found[outside])
            return found

        return ordered
