"""A dataset of shards: its position is a shard and an offset, and no other shard is opened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tests.unit.test_loops import Host, check, run
from walrecover.data import ShardedDataset
from walrecover.errors import BadInput, Mismatch
from walrecover.order import Order

SIZES = {"a": 3, "b": 5, "c": 1, "d": 4, "e": 0, "f": 2}


class Shards:
    """Reads `a0`, `a1`, … of shard `a`, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, shard: str, offset: int) -> Iterator[str]:
        self.asked.append((shard, offset))
        return (f"{shard}{n}" for n in range(offset, SIZES[shard]))


def sharded(read: Any = None, **given: Any) -> ShardedDataset:
    return ShardedDataset(list(SIZES), read or Shards(), seed=given.pop("seed", 1), **given)


def whole(epoch: int) -> list[str]:
    names = list(SIZES)
    order = Order(1, epoch, len(names))
    return [f"{names[order(p)]}{n}" for p in range(6) for n in range(SIZES[names[order(p)]])]


def test_each_epoch_has_its_order_of_shards() -> None:
    data = sharded()
    assert [list(data) for _ in range(3)] == [whole(0), whole(1), whole(2)]
    data.set_epoch(1)
    assert list(data) == list(data) == whole(1)
    assert list(sharded(shuffle=False))[:4] == ["a0", "a1", "a2", "b0"]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_and_workers_share_the_shards(world: int) -> None:
    parts = [list(sharded(rank=rank, world=world)) for rank in range(world)]
    assert sorted(s for part in parts for s in part) == sorted(whole(0))
    loader: Any = DataLoader(sharded(rank=0, world=world), batch_size=None, num_workers=2)
    assert sorted(loader) == sorted(parts[0])


def test_from_any_state_the_rest_is_the_same_and_one_shard_is_opened() -> None:
    for count in range(len(whole(1)) + 1):
        data = sharded()
        list(data)
        iterator = iter(data)
        before = [next(iterator) for _ in range(count)]
        state = data.state_dict()
        read = Shards()
        resumed = sharded(read)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert before + list(resumed) == whole(1)
        if before:
            assert read.asked[0] == (before[-1][0], int(before[-1][1:]) + 1)
        assert len(read.asked) <= 6 - state["place"]
        assert list(resumed) == whole(2)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"shuffle": False}, "shards was"),
        ({"rank": 0, "world": 2}, "world was 1 and is 2"),
    ],
)
def test_a_state_of_other_shards_is_refused(other: dict[str, Any], said: str) -> None:
    state = sharded().state_dict()
    with pytest.raises(Mismatch, match=said):
        sharded(**other).load_state_dict(state)
    with pytest.raises(Mismatch, match="shards was"):
        ShardedDataset(["a", "b"], Shards(), seed=1).load_state_dict(state)


def test_what_is_refused() -> None:
    with pytest.raises(BadInput, match="4 ranks cannot share 6 shards equally: 1, 2, 3 or 6 can"):
        sharded(rank=0, world=4)
    with pytest.raises(BadInput, match="give both"):
        sharded(rank=0)
    with pytest.raises(BadInput, match="this one has 0"):
        ShardedDataset([], Shards())


def directly(host: Host) -> Iterator[Any]:
    data = sharded()
    for _ in host.loop(range(3)):
        for sample in host.loop(data):
            yield host.step(), [sample]


def in_a_loader(host: Host) -> Iterator[Any]:
    loader: Any = DataLoader(sharded(), 4)
    for _ in host.loop(range(3)):
        for batch in host.loop(loader):
            yield host.step(), batch


def made_anew(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        for batch in host.loop(DataLoader(sharded(), 4)):
            yield host.step(), batch


def beside_another(host: Host) -> Iterator[Any]:
    """The snapshot may be taken in the other loop, which says nothing of this one's epoch."""
    loader: Any = DataLoader(sharded(), 4)
    for _ in host.loop(range(3)):
        for batch in host.loop(loader):
            yield host.step(), batch
        for _ in host.loop(range(2)):
            yield host.step(), []


@pytest.mark.parametrize("script", [directly, in_a_loader, made_anew, beside_another])
def test_a_run_goes_on_where_it_was(script: Any) -> None:
    _, done = run(script)
    assert [s for _, batch in done for s in batch] == whole(0) + whole(1) + whole(2)
    check(script)


def test_a_resumed_run_opens_the_shard_it_stood_in() -> None:
    reads: list[Shards] = []

    def script(host: Host) -> Iterator[Any]:
        reads.append(Shards())
        for batch in host.loop(DataLoader(sharded(reads[-1]), 4)):
            yield host.step(), batch
        assert host.loops.opaque == []

    host, done = run(script)
    run(script, host.kept[1])
    last = done[1][1][-1]
    assert reads[-1].asked[0] == (last[0], int(last[1:]) + 1)
