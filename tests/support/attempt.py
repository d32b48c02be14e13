"""One attempt of a training script, in a child of the fork server.

Owns what the tests add to a script: its per-step losses in a log, its own death or signal at a
drawn step, and the digests of what it ends with. The script itself is a plain function that calls
`walrecover.attach` and trains.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import walrecover
from tests.support.waiting import last_commit, wait_until
from walrecover import failpoints, plain, shards
from walrecover.manifest import digest_of
from walrecover.session import Run
from walrecover.session import attach as real_attach
from walrecover.session.disabled import DisabledRun
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.objects import Attached


def attempt(
    *,
    script: str,
    log: str,
    result: str,
    end: tuple[int, str, int] | None = None,
    **arguments: Any,
) -> None:
    """Call `script` ("module:function"). `end`: at which step of this attempt, where ("step": as
    `run.step` returns, "boundary": once the boundary is done, "committed": and its snapshot, too)
    and by which signal it is hit."""
    failpoints.arm(os.environ.get(failpoints.ENVIRONMENT, ""))
    module, _, name = script.partition(":")
    sys.argv = [f"{name}.py"]
    attached: dict[str, Any] = {}
    made = 0

    def hit(where: str) -> None:
        if end is not None and end[0] == made and end[1] == where:
            os.kill(os.getpid(), end[2])

    def attach(**given: Any) -> Any:
        attached.clear()
        attached.update({k: v for k, v in given.items() if k not in _OPTIONS})
        return real_attach(**given)

    def wrap_step(kind: Any) -> None:
        original = kind.step

        def step(self: Any, **values: Any) -> None:
            nonlocal made
            loss = float(torch.as_tensor(values.get("loss", 0.0)).detach())
            before = self.global_step
            made += 1
            with open(log, "a") as file:  # before the step: without a loop, it is the boundary
                file.write(f"{before + 1} {loss.hex()}\n")
            original(self, **values)
            hit("step")

        kind.step = step

    original_boundary = Run.boundary

    def boundary(self: Run) -> None:
        original_boundary(self)
        hit("boundary")
        if end is not None and (end[0], end[1]) == (made, "committed"):
            wait_until(lambda: last_commit() >= self.global_step)
            hit("committed")

    wrap_step(Run)
    wrap_step(DisabledRun)
    Run.boundary = boundary  # type: ignore[method-assign]
    walrecover.attach = attach
    importlib.invalidate_caches()
    said = getattr(importlib.import_module(module), name)(**arguments)
    Path(result).write_text(json.dumps(digests(attached) | {"said": said}))


_OPTIONS = ("name", "dir", "every", "resume", "strict")


def digests(objects: dict[str, Any]) -> dict[str, str]:
    """The digest of each object's whole state, and of each random generator."""
    state = Attached(objects).capture()
    tensors = shards.digests(state.tensors)
    found = {}
    for name, tree in state.tree.items():
        of_tensors = sorted(item for item in tensors.items() if item[0].split(".")[0] == name)
        found[name] = digest_of(plain.encode([tree, of_tensors]))
    return found | {
        f"rng {name}": value.hex() for name, value in rng.digests(rng.capture()).items()
    }


KILL = int(signal.SIGKILL)
