"""One attempt of a training with 430 MB of state in many tensors: without an argument it trains and
is killed, else it is restored, and writes what that took into the file of that name.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import walrecover
from walrecover.session import restoring
from walrecover.torch_adapter.objects import Attached

LAYERS, WIDTH = 82, 660
ROUNDS = 5


def main(result: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    _import_what_optimizers_do()
    took: dict[str, list[float]] = {"read": [], "applied": []}
    restoring.read = _timed(restoring.read, took["read"])
    Attached.restore = _timed(Attached.restore, took["applied"])  # type: ignore[method-assign]
    run = walrecover.attach(name="bench", model=model, optimizer=optimizer)
    for made, _ in enumerate(run.loop(range(1000)), 1):
        if result:
            break
        optimizer.zero_grad()
        loss = model(torch.randn(4, WIDTH)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.step(loss=loss)
        if made == 3:  # what it did last is lost with its events, and the step before is saved
            os.kill(os.getpid(), signal.SIGKILL)
    state = Attached({"model": model, "optimizer": optimizer}).capture()
    took["memcpy"] = _copies([(t.address, t.nbytes) for t in state.tensors.values()])
    Path(result).write_text(json.dumps(took))
    os.kill(os.getpid(), signal.SIGKILL)  # not the end of the run: it is restored again


def _import_what_optimizers_do() -> None:
    """At their first use, which every restart pays for, restored from wherever."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    optimizer.load_state_dict(optimizer.state_dict())


def _timed(call: Callable[..., Any], took: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        found = call(*arguments, **named)
        took.append(time.perf_counter() - began)
        return found

    return timed


def _copies(places: list[tuple[int, int]]) -> list[float]:
    """Seconds of copying as many pieces, by one thread, into touched memory."""
    target = torch.zeros(sum(nbytes for _, nbytes in places), dtype=torch.uint8)
    took = []
    for _ in range(ROUNDS):
        to = target.data_ptr()
        began = time.perf_counter()
        for address, nbytes in places:
            ctypes.memmove(to, address, nbytes)
            to += nbytes
        took.append(time.perf_counter() - began)
    return took


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
