"""Scripts whose number of ranks changes between attempts. Over gloo, or alone without DDP."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

import walrecover
from walrecover.data import GlobalBatchSampler
from walrecover.manifest import digest_of

from .ranks import group
from .toy import learn, network, samples, seed

SIZE, BATCH = 48, 12


class Named(Dataset[tuple[Tensor, Tensor, int]]):
    """Samples that say which they are."""

    def __init__(self) -> None:
        self.samples = samples(SIZE)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return (*self.samples[index], index)


def training(
    store: str,
    rank: int,
    world: int,
    ids: str,
    epochs: int = 3,
    foreign: bool = False,
    own: bool = False,
    unused: bool = False,
) -> None:
    """Appends to the file `ids` of which samples each step is made."""
    with group(store, rank, world):
        seed()
        model = DistributedDataParallel(network(), find_unused_parameters=unused)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        scheduler = StepLR(optimizer, 3, 0.5)
        torch.manual_seed(rank)  # dropout differs between the ranks
        data = Named()
        loader: Any
        if foreign:
            loader = DataLoader(data, BATCH // world, sampler=DistributedSampler(data, world, rank))
        else:
            loader = DataLoader(data, batch_sampler=GlobalBatchSampler(data, BATCH, seed=1))
        more = {"own": {"rank": rank}} if own else {}
        run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, **more)
        print("restored the mean", digest_of(model.module[1].running_mean.numpy().tobytes()))
        for epoch in run.loop(range(epochs)):
            if foreign:
                loader.sampler.set_epoch(epoch)
            for x, y, numbers in run.loop(loader):
                with open(ids, "a") as file:
                    print(os.getpid(), run.global_step + 1, *numbers.tolist(), file=file)
                loss = learn(model, optimizer, x, y)
                scheduler.step()
                run.step(loss=loss)
