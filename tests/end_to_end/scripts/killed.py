"""Trains a little, and kills itself: `killed.py 37,60`, at which step for each attempt in turn; or
stays there, and says so: `killed.py 37 stay`.

A step makes many small passes, so that it takes some milliseconds without a clock.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

import walrecover

STEPS, PASSES = 120, 30

attempt = int(os.environ["WALRECOVER_ATTEMPT"].partition("-")[0])
kills = dict(enumerate(map(int, sys.argv[1].split(",")), 1))
stays = sys.argv[2:] == ["stay"]

torch.set_num_threads(1)
torch.manual_seed(1)
data = TensorDataset(torch.randn(STEPS, 8), torch.randn(STEPS, 1))
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
run = walrecover.attach(model=model, optimizer=optimizer)
for x, y in run.loop(DataLoader(data)):
    optimizer.zero_grad()
    for n in range(PASSES):
        (model(x) - y).square().mean().backward()
        if n == PASSES // 2 and run.global_step + 1 == kills.get(attempt):
            if not stays:
                os.kill(os.getpid(), signal.SIGKILL)
            print("stays", flush=True)
            signal.pause()
    optimizer.step()
    run.step()
