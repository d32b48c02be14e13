"""Trains a little, and kills itself: `killed.py 37,60`, at which step for each attempt in turn; or
stops itself there: `killed.py 37 STOP`.

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
deed = signal.Signals[f"SIG{sys.argv[2]}"] if len(sys.argv) > 2 else signal.SIGKILL

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
            os.kill(os.getpid(), deed)
    optimizer.step()
    run.step()
