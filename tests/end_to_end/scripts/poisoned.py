"""Training with one poisoned sample: its batch gives a loss that is NaN, and weights that are.

`poisoned.py global|plain EPOCHS`: which sampler. Notes the samples that it trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import walrecover
from walrecover.data import GlobalBatchSampler

LENGTH, BATCH, POISON = 96, 8, 37


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        x = torch.tensor([index / LENGTH - 0.5, float("nan") if index == POISON else 1.0])
        return x, 3 * x[:1], index


def loader(kind: str) -> DataLoader[tuple[torch.Tensor, torch.Tensor, int]]:
    data = Samples()
    if kind == "global":
        return DataLoader(data, batch_sampler=GlobalBatchSampler(data, BATCH, seed=3))
    return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(3))


def train(kind: str, epochs: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = loader(kind)
    run = walrecover.attach(model=model, optimizer=optimizer, every="2steps")
    for _ in run.loop(range(epochs)):
        for x, y, ids in run.loop(batches):
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
            with Path("trained").open("a") as file:
                print(run.global_step, *ids.tolist(), file=file)
    print("finite", bool(torch.isfinite(model.weight).all()))


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
