"""One run that dies of everything: `dying.py code,data,…`, one word for each attempt.

Every attempt makes one new step, so that the next one starts at once; "again" makes none.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import Any

import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

import walrecover

kind = sys.argv[1].split(",")[int(os.environ["WALRECOVER_ATTEMPT"].partition("-")[0]) - 1]


class Samples(Dataset[Any]):
    armed = False

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        if self.armed and kind == "data":
            raise KeyError(f"sample {index} is torn")
        return torch.randn(3), torch.randn(1)


def fill_a_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("a checkpoint")


def lose_a_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    socket.create_connection(address)


def fail() -> None:
    raise ValueError("not enough values to unpack")


DEATHS = {
    "code": fail,
    "again": fail,
    "out_of_memory": lambda: torch.empty(1 << 50),
    "storage": fill_a_disk,
    "communication": lose_a_peer,
    "crash": lambda: ctypes.string_at(0),
    "numeric": lambda: None,  # it goes on until it is ended
    "preempted": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "data": lambda: None,
}

torch.set_num_threads(1)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
samples = Samples()
run = walrecover.attach(model=model, optimizer=optimizer, every="1steps")
new = 0 if kind == "again" else 1
for x, y in run.loop(DataLoader(samples)):
    if new == 0:
        DEATHS[kind]()
    loss = mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.step(loss=float("nan") if kind == "numeric" else loss)
    new -= 1
    samples.armed = True
