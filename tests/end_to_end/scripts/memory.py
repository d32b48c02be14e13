"""What happens to captures in memory."""

from __future__ import annotations

import resource
import threading
from typing import Any

import psutil
import torch

import walrecover
from walrecover.journal.committer import Committer

from .toy import learn, network, samples, seed

STEPS = 12
STATE_BYTES, SPARE_BYTES = 64 << 20, 128 << 20
"""Three slots for the state are more than may still be had."""


def short_of_memory() -> None:
    """No more address space than there is by now, and what the training itself needs."""
    seed()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    large = torch.zeros(STATE_BYTES, dtype=torch.uint8)
    run = walrecover.attach(model=model, optimizer=optimizer, large=large)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))
    x, y = next(iter(torch.utils.data.DataLoader(samples(8), 8)))
    for _ in run.loop(range(STEPS)):
        run.step(loss=learn(model, optimizer, x, y))


def growing() -> list[int]:
    """From step to step there is more to keep. Returns how much there was."""
    seed()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    log: dict[str, list[bytes]] = {"lines": []}
    run = walrecover.attach(model=model, optimizer=optimizer, log=log)
    x, y = next(iter(torch.utils.data.DataLoader(samples(8), 8)))
    for _ in run.loop(range(STEPS)):
        learn(model, optimizer, x, y)
        log["lines"].append(b"." * (1 << 18))
        run.step()
    return [len(b"".join(log["lines"][:n])) for n in range(1, len(log["lines"]) + 1)]


def on_a_disk_that_hangs() -> None:
    """From step 5 on no event is committed any more: the disk does not answer."""
    seed()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    run = walrecover.attach(model=model, optimizer=optimizer)
    commit = Committer.commit

    def hang(self: Committer, group: Any) -> None:
        if run.global_step >= 5:
            threading.Event().wait()
        commit(self, group)

    Committer.commit = hang  # type: ignore[method-assign]
    x, y = next(iter(torch.utils.data.DataLoader(samples(8), 8)))
    for _ in run.loop(range(STEPS)):
        run.step(loss=learn(model, optimizer, x, y))
