"""A training script whose samples are augmented at random, with draws of every kind, in a global
order, over two epochs of ten steps.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

import walrecover
from walrecover.data import GlobalBatchSampler

from .toy import learn, samples, training

COUNT, BATCH = 60, 6


class Augmented(Dataset[Any]):
    def __init__(self) -> None:
        self.data = samples(COUNT)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.data[index]
        if random.random() < 0.5:
            x = x.flip(0)
        return x * float(np.random.uniform(0.5, 1.5)) + 0.1 * torch.randn(4), y


def mixed(drawn: list[Any]) -> Any:
    """A collate function that draws as well."""
    x, y = default_collate(drawn)
    return x + 0.1 * torch.rand(()) * x[torch.randperm(len(x))], y


def augmented(workers: int) -> None:
    model, optimizer, scheduler = training()
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    data = Augmented()
    sampler = GlobalBatchSampler(data, BATCH, seed=1)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=mixed)
    for _ in run.loop(range(2)):
        for x, y in run.loop(loader):
            run._journal.sync()  # type: ignore[union-attr]  # a kill would take its last moments
            run.step(loss=learn(model, optimizer, x, y))
        scheduler.step()
