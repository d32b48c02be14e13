"""Scripts for two ranks over gloo, on one machine and without a network."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import walrecover
from walrecover.session import attaching

from .failing import Fuse, Fusible
from .toy import learn, network, samples, seed


@contextmanager
def group(store: str, rank: int, world: int) -> Iterator[Any]:
    """A process group over a file that is this attempt's own."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    shared = dist.FileStore(store, world)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=world)
    yield shared
    dist.destroy_process_group()


def wrapped(rank: int, world: int) -> tuple[Any, torch.optim.Optimizer, Any]:
    seed()
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    torch.manual_seed(rank)  # dropout differs between the ranks
    data = samples(40)
    sampler: Any = DistributedSampler(data, world, rank, shuffle=True, seed=2)
    return model, optimizer, DataLoader(data, 4, sampler=sampler)


def training(store: str, rank: int, world: int = 2, epochs: int = 3) -> None:
    with group(store, rank, world):
        model, optimizer, loader = wrapped(rank, world)
        scheduler = StepLR(optimizer, 1, 0.5)
        own = {"rank": rank, "losses": []}
        run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, own=own)
        for epoch in run.loop(range(epochs)):
            loader.sampler.set_epoch(epoch)
            for x, y in run.loop(loader):
                loss = learn(model, optimizer, x, y)
                run.step(loss=loss)
                own["losses"].append(loss.item())
            scheduler.step()


def drifting(store: str, rank: int, world: int = 2) -> None:
    """From the third step on, the second rank's weights are not the first's."""
    with group(store, rank, world):
        model, optimizer, loader = wrapped(rank, world)
        run = walrecover.attach(model=model, optimizer=optimizer)
        for n, (x, y) in run.enumerate(loader):
            loss = learn(model, optimizer, x, y)
            if n == 2 and rank == 1:
                with torch.no_grad():
                    model.module[0].weight[0, 0] += 1
            run.step(loss=loss)
            dist.barrier()


def by_hand(
    store: str, rank: int, world: int = 2, skips: int = 0, lags: bool = False, strict: bool = True
) -> None:
    """Replicas without DDP. The second rank's optimizer passes over step `skips`, as a GradScaler
    of its own may. `lags`: one parameter of the second rank gets no gradient in the first step."""
    with group(store, rank, world):
        seed()
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        run = walrecover.attach(model=model, optimizer=optimizer, strict=strict)
        for n, (x, y) in run.enumerate(DataLoader(samples(40), 2)):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            if lags and rank == 1 and n == 0:
                model[0].bias.grad = None
            if not (rank == 1 and n + 1 == skips):
                optimizer.step()
            run.step()


def late(store: str, rank: int, world: int = 2) -> None:
    """The second rank never comes to `attach`."""
    attaching.Ranks = functools.partial(attaching.Ranks, timeout=1.0)  # type: ignore[misc,assignment]
    with group(store, rank, world) as shared:
        if rank == 0:
            try:
                walrecover.attach(model=nn.Linear(1, 1))
            finally:
                shared.set("over", "1")
        shared.wait(["over"])


def refused(store: str, rank: int, world: int = 2) -> None:
    """What the first rank cannot begin, no rank begins."""
    with group(store, rank, world):
        walrecover.attach(model=nn.Linear(1, 1), resume="must")


def ungrouped() -> None:
    os.environ["WORLD_SIZE"] = "2"
    walrecover.attach(model=nn.Linear(1, 1))


def failing(
    store: str, rank: int, world: int = 2, who: int = 1, at: int = 0, where: str = "nowhere"
) -> None:
    """One rank fails once; the other one waits for it in the backward pass."""
    with group(store, rank, world):
        model, optimizer, loader = wrapped(rank, world)
        fuse = Fuse(at if rank == who else 0, where)
        model.module.append(Fusible(fuse))
        own = {"rank": rank, "losses": []}
        run = walrecover.attach(model=model, optimizer=optimizer, own=own)
        fuse.making = run.global_step + 1
        for epoch in run.loop(range(3)):
            loader.sampler.set_epoch(epoch)
            for x, y in run.loop(loader):
                own["losses"].append(x.mean().item())
                loss = learn(model, optimizer, x, y)
                fuse.reaches("between")
                run.step(loss=loss)
                fuse.making += 1
