"""A training with torch of which most is frozen, as under LoRA."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

import walrecover
from tests.support.waiting import last_commit, wait_until
from walrecover.manifest import digest_of


def train(steps: int, result: str, die_at: int = 0) -> None:
    """Snapshot after every step; say the state at the end, or die behind a step's snapshot."""
    torch.manual_seed(0)
    frozen = torch.nn.Linear(64, 64).requires_grad_(False)
    adapter = torch.nn.Linear(64, 4)
    model = torch.nn.Sequential(frozen, adapter)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    run = walrecover.attach(
        name="a-run", dir=".walrecover", every="1steps", model=model, optimizer=optimizer
    )
    frozen_before = digest_of(frozen.weight.detach().numpy().tobytes())
    for _ in run.loop(range(steps)):
        if die_at and run.global_step == die_at:
            wait_until(lambda: last_commit() == die_at)
            os.kill(os.getpid(), signal.SIGKILL)
        loss = model(torch.randn(8, 64)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
    state = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    Path(result).write_text(f"{run.global_step} {digest_of(state)} {frozen_before}")
