"""Train a small network to tell shapes in noisy pictures, augmented at random inside two workers.

    walrecover run -- python examples/augmented_images.py

Pictures are shifted, mirrored, dimmed and partly erased as they are loaded, with draws from
`random`, NumPy and torch. A loader's workers are new processes in every attempt; `run.loop` gives
each batch randomness of its own, a function of the run's seed, the epoch and the batch. So a
picture that is loaded again after a crash is augmented as before, with any number of workers.
"""

import argparse
import math
import random

import numpy as np
import torch
from char_gpt import digest, note
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

import walrecover
from walrecover.data import GlobalBatchSampler

SIDE, SHAPES = 16, 4


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """`count` pictures of a ring, a disc, a cross or a bar, each with its shape and its number."""

    def __init__(self, count: int, augment: bool = True) -> None:
        self.count, self.augment = count, augment

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        shape, radius = index % SHAPES, 3 + index // SHAPES % 4
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        picture = drawn(shape, radius, x, y)
        if self.augment:
            picture = augmented(picture)
        return torch.from_numpy(picture.astype(np.float32))[None], shape, index


def drawn(shape: int, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    away = np.hypot(x, y)
    return [
        abs(away - radius) < 1,
        away < radius,
        (np.minimum(abs(x), abs(y)) < 1) & (away < radius + 1),
        (abs(x) < radius + 1) & (abs(y) < 2),
    ][shape] * 1.0


def augmented(picture: np.ndarray) -> np.ndarray:
    picture = np.roll(picture, (random.randint(-2, 2), random.randint(-2, 2)), (0, 1))
    if random.random() < 0.5:
        picture = picture[:, ::-1]
    picture = picture * np.random.uniform(0.5, 1.5) + np.random.normal(0, 0.3, picture.shape)
    top, left = torch.randint(0, SIDE - 4, (2,)).tolist()
    picture[top : top + 4, left : left + 4] = 0
    return picture


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8 * width, SHAPES),
    )


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    held_out = DataLoader(Pictures(64, augment=False), batch_size=32)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y, _ in held_out)
    model.train()
    return right / 64


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ids", help="append the numbers of each step's pictures to this file")
    settings = {"epochs": 3, "pictures": 400, "batch_size": 16, "workers": 2, "seed": 1, "width": 8}
    for name, default in settings.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    pictures = Pictures(args.pictures)
    sampler = GlobalBatchSampler(pictures, args.batch_size, seed=args.seed)
    loader = DataLoader(pictures, batch_sampler=sampler, num_workers=args.workers)
    model = network(args.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    steps = args.epochs * math.ceil(args.pictures / args.batch_size)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)

    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.loop(range(args.epochs)):
        for x, y, numbers in run.loop(loader):
            note(args.ids, run.global_step + 1, numbers)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if run.global_step + 1 < steps:
                scheduler.step()
            run.step(loss=loss)
            if run.global_step % 20 == 0:
                print(f"step {run.global_step} loss {loss.item():.4f}", flush=True)
        print(f"epoch {epoch} right {accuracy(model):.2f}", flush=True)
    print(f"weights sha256 {digest(model)}")


if __name__ == "__main__":
    main()
