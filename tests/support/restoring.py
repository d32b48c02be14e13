"""A training of a few steps with torch, for the failpoints inside restoring."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

import walrecover
from tests.support.waiting import last_commit, wait_until
from walrecover import failpoints
from walrecover.manifest import digest_of


def resume(steps: int, armed: str, result: str, die: bool) -> None:
    """Attach, say what was restored, make some steps with a snapshot after each."""
    failpoints.arm(armed)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = walrecover.attach(
        name="a-run", dir=".walrecover", every="1steps", model=model, optimizer=optimizer
    )
    weights = digest_of(model.weight.detach().numpy().tobytes())
    Path(result).write_text(f"{run.global_step} {weights}")
    for _ in run.loop(range(steps + 1)) if steps else ():
        if run.global_step == steps:
            break
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
    if die:
        wait_until(lambda: last_commit() == steps)
        os.kill(os.getpid(), signal.SIGKILL)
