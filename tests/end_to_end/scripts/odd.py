"""Scripts that do what the contract forbids, or what it says a word about."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

import walrecover
from walrecover.data import GlobalBatchSampler

from .toy import SAMPLES, batches, learn, loss_of, training


def epochs(count: int, schedule: bool = True) -> None:
    model, optimizer, scheduler = training()
    kept = {"scheduler": scheduler} if schedule else {}
    run = walrecover.attach(model=model, optimizer=optimizer, **kept)
    for _ in run.loop(range(count)):
        for x, y in run.loop(batches(8)):
            run.step(loss=learn(model, optimizer, x, y))
        scheduler.step() if schedule else torch.rand(1)


def saying() -> dict[str, Any]:
    """Says what the run's read-only properties were, and that code after the loop ran."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    seen = [run.global_step]
    for x, y in run.loop(batches()):
        run.step(loss=learn(model, optimizer, x, y), number=1, tensor=torch.ones(1))
        seen.append(run.global_step)
        print("stopping" if run.stopping else "going on")
    print("after the loop")
    return {"name": run.name, "first": seen[0], "last": seen[-1]}


def named(names: str, strict: bool = True) -> None:
    """Attaches what is named, from the two ends of training."""
    model, optimizer, scheduler = training()
    everything = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    chosen = {name: everything[name] for name in names.split()}
    run = walrecover.attach(strict=strict, **chosen)
    for x, y in run.loop(batches()):
        run.step(loss=learn(model, optimizer, x, y))


def widened(width: int, strict: bool = True) -> None:
    """The model's hidden layer has as many units as asked for."""
    torch.manual_seed(1)
    layers = [nn.Linear(4, width), *(nn.Linear(width, width) for _ in range(4))]
    model = nn.Sequential(*layers, nn.Linear(width, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = walrecover.attach(model=model, optimizer=optimizer, strict=strict)
    for x, y in run.loop(batches()):
        run.step(loss=learn(model, optimizer, x, y))


def shrunk(samples: int) -> None:
    """The loader has as many samples as asked for."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in run.loop(range(2)):
        data = torch.utils.data.Subset(batches().dataset, range(samples))
        for x, y in run.loop(torch.utils.data.DataLoader(data, 2)):
            run.step(loss=learn(model, optimizer, x, y))


def reordered(start: int) -> None:
    """A sampler whose order depends on what it is told."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    data = batches().dataset
    order = [(start + n) % len(data) for n in range(len(data))]  # type: ignore[arg-type]
    for _ in run.loop(range(2)):
        for x, y in run.loop(torch.utils.data.DataLoader(data, 2, sampler=order)):
            run.step(loss=learn(model, optimizer, x, y))


def ordered(seed: int, samples: int) -> None:
    """The global order of a seed."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    data = torch.utils.data.Subset(batches().dataset, range(samples))
    sampler = GlobalBatchSampler(data, 2, seed=seed)
    for _ in run.loop(range(2)):
        for x, y in run.loop(torch.utils.data.DataLoader(data, batch_sampler=sampler)):
            run.step(loss=learn(model, optimizer, x, y))


def attached_twice() -> None:
    """A notebook: a cell is left in the middle, and run again with new objects."""
    for _cell in range(2):
        model, optimizer, scheduler = training()
        run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
        for epoch in run.loop(range(3)):
            for n, (x, y) in run.enumerate(batches()):
                run.step(loss=learn(model, optimizer, x, y))
                if _cell == 0 and (epoch, n) == (1, 2):
                    break
            if _cell == 0 and epoch == 1:
                break
            scheduler.step()


def attached_once() -> None:
    """What `attached_twice` comes to."""
    model, optimizer, scheduler = training()
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    for _ in run.loop(range(3)):
        for x, y in run.loop(batches()):
            run.step(loss=learn(model, optimizer, x, y))
        scheduler.step()


def raising(at: int) -> None:
    """An exception in the body, after the optimizer's step."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for x, y in run.loop(batches()):
        loss = learn(model, optimizer, x, y)
        if run.global_step + 1 == at:
            raise ValueError("as asked for")
        run.step(loss=loss)


def loopless(wrapped: bool) -> None:
    """A loop that is wrapped at first and not any more."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = batches()
    for x, y in run.loop(loader) if wrapped else loader:
        run.step(loss=learn(model, optimizer, x, y))


# -- reading ahead --------------------------------------------------------------------------------

Batches = Iterable[Any]


def prefetching(items: Batches) -> Iterator[Any]:
    """Yields an item only once the next one is there."""
    source = iter(items)
    held = next(source)
    for item in source:
        yield held
        held = item
    yield held


class Prefetcher:
    """As it stands in many a training script for CUDA streams."""

    def __init__(self, items: Batches) -> None:
        self.source = iter(items)
        self.preload()

    def preload(self) -> None:
        self.held = next(self.source, None)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.held is None:
            raise StopIteration
        held = self.held
        self.preload()
        return held


def buffering(items: Batches) -> Iterator[Any]:
    """Three items ahead."""
    held: list[Any] = []
    for item in items:
        held.append(item)
        if len(held) > 3:
            yield held.pop(0)
    yield from held


def threaded(items: Batches) -> Iterator[Any]:
    """A thread fills a queue."""
    filled: queue.Queue[Any] = queue.Queue(2)

    def fill() -> None:
        try:
            for item in items:
                filled.put(item)
        finally:
            filled.put(None)

    thread = threading.Thread(target=fill)
    thread.start()
    while (item := filled.get()) is not None:
        yield item
    thread.join()


def passing(items: Batches) -> Iterator[Any]:
    """Reads nothing ahead."""
    yield from items


def grouping(items: Batches) -> Iterator[Any]:
    """Two at a time, and no more than it gives."""
    held = []
    for item in items:
        held.append(item)
        if len(held) == 2:
            yield tuple(torch.cat(parts) for parts in zip(*held, strict=True))
            held = []


WRAPPERS: dict[str, Callable[[Batches], Batches]] = {
    "prefetching": prefetching,
    "Prefetcher": Prefetcher,
    "buffering": buffering,
    "threaded": threaded,
    "passing": passing,
    "grouping": grouping,
}


def wrapped(by: str, outside: bool = True) -> None:
    """Something between `run.loop` and the body, or inside it."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    wrap = WRAPPERS[by]
    for x, y in wrap(run.loop(batches())) if outside else run.loop(wrap(batches())):
        run.step(loss=learn(model, optimizer, x, y))


def wrapped_inside(by: str) -> None:
    """The same below an outer loop."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in run.loop(range(2)):
        for x, y in WRAPPERS[by](run.loop(batches())):
            run.step(loss=learn(model, optimizer, x, y))


def skipping_the_first() -> None:
    """A plain loop whose first item takes part in no step."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for n, (x, y) in run.enumerate(batches()):
        if n:
            run.step(loss=learn(model, optimizer, x, y))


def as_a_generator() -> None:
    """The training itself is a generator, whose consumer wants the losses."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)

    def losses() -> Iterator[float]:
        for n, (x, y) in run.enumerate(batches()):
            loss = loss_of(model, x, y)
            if n:
                run.step(loss=learn(model, optimizer, x, y))
            yield loss.item()

    assert sum(losses()) > 0


def two_at_once() -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for (x, y), _scale in zip(run.loop(batches()), run.loop(range(SAMPLES)), strict=False):
        run.step(loss=learn(model, optimizer, x, y))
