"""The toy that the scripts train: small, yet with dropout, BatchNorm and a schedule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 22


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def samples(count: int = SAMPLES) -> TensorDataset:
    drawn = torch.Generator().manual_seed(7)
    x = torch.randn(count, 4, generator=drawn)
    return TensorDataset(x, (x.sum(1) > 0).long())


def batches(batch_size: int = 4, shuffle: bool = True, **more: Any) -> DataLoader[Any]:
    return DataLoader(samples(), batch_size, shuffle=shuffle, **more)


def training() -> tuple[nn.Sequential, torch.optim.Optimizer, MultiStepLR]:
    """Seeded: a network, its optimizer and its schedule."""
    seed()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return model, optimizer, MultiStepLR(optimizer, [3, 7], 0.5)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step of the optimizer."""
    loss = loss_of(model, x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@torch.no_grad()
def accuracy(model: nn.Module, loader: Any) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    model.train()
    return right / SAMPLES
