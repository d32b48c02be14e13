"""What the rehearsals rehearse: a few hundred parameters, and one fault a time.

Run as a script. A step makes many small passes, so that it takes some milliseconds without a
clock. `FAULT` is the first argument.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import walrecover

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""
EPOCHS, BATCHES, PASSES = 3, 20, 15


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(BATCHES * 8, 8), torch.randn(BATCHES * 8, 1))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if FAULT == "scheduler":
        del objects["scheduler"]
    if FAULT == "detached":
        return
    run = walrecover.attach(**objects)
    for epoch in run.loop(range(EPOCHS)):
        for x, y in run.loop(loader):
            if FAULT == "random" and run.global_step >= 2:
                x = x + os.urandom(1)[0] * 1e-3
            optimizer.zero_grad()
            for _ in range(PASSES):
                loss = (model(x) - y).square().mean() / PASSES
                loss.backward()
            optimizer.step()
            scheduler.step()
            run.step(loss=loss)
        if FAULT == "end" and epoch == EPOCHS - 1:
            model[0].bias.data[3] = os.urandom(1)[0] + run.global_step + os.getpid()
        with open("trained.txt", "w") as file:
            print(epoch, os.getpid(), file=file)
    if FAULT == "fails":
        sys.exit(3)


if __name__ == "__main__":
    main()
