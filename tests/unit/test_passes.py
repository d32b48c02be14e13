"""Passes over loaders, counted from the run's beginning: the order and the workers' randomness of
each pass are its own, and a resumed run has those of the uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.unit.test_loops import Host, check, run
from walrecover.data import GlobalBatchSampler
from walrecover.entries import Skip
from walrecover.order import Order
from walrecover.session.restoring import position_from


class Drawing(Dataset[Any]):
    def __init__(self, length: int = 6) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, random.random() + float(torch.rand(()))


def loader(data: Any = None, batch: int = 2, **given: Any) -> Any:
    data = Drawing() if data is None else data
    sampler = GlobalBatchSampler(data, batch, seed=1)
    return DataLoader(data, batch_sampler=sampler, collate_fn=list, **given)


def epochs(done: list[Any], length: int = 6) -> list[int]:
    """Which epochs of the order the batches are, each whole."""
    ids = [index for _, batch, *_ in done for index, _ in batch]
    known = {tuple(map(Order(1, epoch, length), range(length))): epoch for epoch in range(9)}
    return [known[tuple(ids[n : n + length])] for n in range(0, len(ids), length)]


def distinct(done: list[Any]) -> bool:
    """Whether no two samples were drawn for alike."""
    drawn = [value for _, batch, *_ in done for _, value in batch]
    return len(set(drawn)) == len(drawn)


def nested(host: Host) -> Iterator[Any]:
    it = loader()
    for _ in host.loop(range(3)):
        for batch in host.loop(it):
            yield host.step(), batch, random.random()


def in_a_plain_loop(host: Host) -> Iterator[Any]:
    it = loader()
    for _ in range(3):
        for batch in host.loop(it):
            yield host.step(), batch


def made_anew(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        for batch in host.loop(loader()):
            yield host.step(), batch


def made_anew_in_a_plain_loop(host: Host) -> Iterator[Any]:
    for _ in range(3):
        for batch in host.loop(loader()):
            yield host.step(), batch


def twice_an_epoch(host: Host) -> Iterator[Any]:
    it = loader()
    for _ in host.loop(range(2)):
        for batch in host.loop(it):
            yield host.step(), batch
        random.random()
        for batch in host.loop(it):
            yield host.step(), batch


def behind_a_warm_up(host: Host) -> Iterator[Any]:
    """In the first epoch the loader's loop is the second one, later the first."""
    warm, it = loader(Drawing(4)), loader()
    for epoch in host.loop(range(3)):
        if epoch == 0:
            for _ in host.loop(warm):
                host.step()
        for batch in host.loop(it):
            yield host.step(), batch


def without_steps(host: Host) -> Iterator[Any]:
    """A pass in which no step is made is a pass."""
    it = loader()
    for _ in host.loop(range(3)):
        seen = list(host.loop(it))
        yield host.step(), [sample for batch in seen for sample in batch]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (nested, [0, 1, 2]),
        (in_a_plain_loop, [0, 1, 2]),
        (made_anew, [0, 1, 2]),
        (made_anew_in_a_plain_loop, [0, 1, 2]),
        (twice_an_epoch, [0, 1, 2, 3]),
        (behind_a_warm_up, [0, 1, 2]),
        (without_steps, [0, 1, 2]),
    ],
)
def test_each_pass_has_its_epoch_and_its_draws_also_when_resumed(
    script: Any, expected: list[int]
) -> None:
    _, done = run(script)
    assert epochs(done) == expected
    assert distinct(done)
    check(script)


def test_a_pass_that_is_gone_through_again_is_the_one_it_was() -> None:
    """Samples are read ahead, without steps, and trained on in another loop: resumed there, the
    same are read again."""

    def script(host: Host) -> Iterator[Any]:
        it = loader()
        for _ in host.loop(range(3)):
            seen = list(host.loop(it))
            for number in host.loop(range(2)):
                yield host.step(), seen[number]

    _, done = run(script)
    assert distinct(done)
    check(script)


def test_with_workers_every_resume_draws_what_it_drew() -> None:
    def script(host: Host) -> Iterator[Any]:
        it = loader(num_workers=2)
        for _ in host.loop(range(2)):
            for batch in host.loop(it):
                yield host.step(), batch

    check(script)
    _, with_workers = run(script)
    _, without = run(nested)
    assert [did[:2] for did in without[:6]] == with_workers


def test_loaders_of_one_loop_draw_apart() -> None:
    def script(host: Host) -> Iterator[Any]:
        data = Drawing()
        for _ in host.loop(range(2)):
            for one, other in host.loop(loader(data), loader(Drawing(6), 3)):
                yield host.step(), one + other

    check(script)
    _, done = run(script)
    assert distinct(done)


def test_two_passes_over_one_dataset_at_once_are_of_two_readers() -> None:
    """Pairs of its samples: neither reader repeats what the other has read."""

    def script(host: Host) -> Iterator[Any]:
        data = Drawing()
        for _ in host.loop(range(2)):
            for one, other in host.loop(loader(data), loader(data)):
                for inner in host.loop(loader(data, 6)):
                    yield host.step(), one + other + inner

    host = check(script)
    _, done = run(script)
    assert distinct(done)
    kept = position_from(host.kept[-1][1])
    assert [count.passes for count in kept.passes] == [2, 2, 6]
    assert len({known.number for _, known in kept.ledger.readers}) == len(kept.ledger.readers)


def test_a_loader_met_again_in_another_loop_goes_on() -> None:
    """First two epochs in one loop, then a fine-tuning in another: its passes are 2 and 3."""

    def script(host: Host) -> Iterator[Any]:
        it = loader()
        for _ in host.loop(range(2)):
            for batch in host.loop(it):
                yield host.step(), batch
        for _ in host.loop(range(2)):
            for batch in host.loop(it):
                yield host.step(), batch

    _, done = run(script)
    assert epochs(done) == [0, 1, 2, 3]
    check(script)


def test_set_epoch_is_the_scripts_own() -> None:
    def script(host: Host) -> Iterator[Any]:
        it = loader()
        for epoch in host.loop(range(3)):
            it.batch_sampler.set_epoch(5 - epoch)
            for batch in host.loop(it):
                yield host.step(), batch

    _, done = run(script)
    assert epochs(done) == [5, 4, 3]
    check(script)


def test_more_epochs_than_before_go_on_with_theirs() -> None:
    asked = count(2)

    def script(host: Host) -> Iterator[Any]:
        it = loader()
        for _ in host.loop(range(next(asked))):
            for batch in host.loop(it):
                yield host.step(), batch

    host, first = run(script)
    _, rest = run(script, host.kept[-1])
    assert epochs(first + rest) == [0, 1, 2]


def test_the_plans_skips_are_left_out_of_their_pass_alone() -> None:
    """From the beginning, and resumed from any boundary: the reader is the second one, behind the
    epochs' loop, and the evaluation before it has no number."""

    def script(host: Host) -> Iterator[Any]:
        host.loops.read_as(0, True, (Skip(1, 0, 2, 3), Skip(1, 1, 4, 6), Skip(0, 0, 0, 1)))
        it, evaluated = loader(), loader(Drawing(8))
        for _ in host.loop(range(3)):
            list(host.loop(evaluated))
            for batch in host.loop(it):
                yield host.step(), batch

    _, done = run(script)
    ids = [[index for index, _ in batch] for _, batch in done]
    orders = [[Order(1, epoch, 6)(n) for n in range(6)] for epoch in range(3)]
    first, second, third = ([order[n : n + 2] for n in (0, 2, 4)] for order in orders)
    assert ids == [first[0], first[2], *second[:2], *third]
    check(script)


def test_the_seed_of_the_run_is_that_of_its_beginning() -> None:
    """A script that is seeded otherwise when it resumes draws what it would have drawn."""
    torch.manual_seed(11)
    host, done = run(nested)
    torch.manual_seed(12)
    _, other = run(nested)
    assert [did[1] for did in other] != [did[1] for did in done]
    torch.manual_seed(13)
    _, resumed = run(nested, host.kept[3])
    assert resumed == done[4:]
