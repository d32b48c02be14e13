"""A training whose state lies on a device, or is taken to, and the saver of its captures.

Its journal and its saver are real; its forward passes move buffers, its steps parameters.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.capturing import background
from tests.support.protocol import capture, completed, entries_of, holder, open_stream
from walrecover import entries as model
from walrecover import snapshot
from walrecover.commits import Key
from walrecover.errors import StorageFailed
from walrecover.events import ScalarsArrived
from walrecover.manifest import digest_of
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.snapshot import Capture
from walrecover.torch_adapter import memory
from walrecover.torch_adapter.objects import Attached


class Training:
    """A model with buffers that move in each forward pass, and its saver. `optimizer`: options of
    AdamW's."""

    def __init__(
        self, root: Path, device: str = "cpu", width: int = 8, layers: int = 1, **optimizer: Any
    ) -> None:
        torch.manual_seed(0)
        hidden = [
            part
            for n in range(layers)
            for part in (nn.Linear(width if n else 4, width), nn.BatchNorm1d(width))
        ]
        self.network = nn.Sequential(*hidden, nn.Linear(width, 1)).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1, **optimizer)
        self.x = torch.randn(6, 4, device=device)
        self.said: list[str] = []
        self.late: list[int] = []
        self.late_lsn = 0
        self.run = RunDir(root / ".walrecover", "a-run")
        self.run.create()
        self.entry = begin_attempt(self.run, holder()).entry
        self.journal = open_stream(self.run, self.entry, 0, 1)
        self.saver = background(
            self.run, self.entry, self.journal, self.said.append, retention=9,
            arrived=self.record_late,
        )  # fmt: skip
        self.step_now = 0
        self.step()
        self.attached = Attached({"model": self.network, "optimizer": self.optimizer})

    def record_late(self) -> bool:
        """Journal the losses that have come from the device: those of `late` steps."""
        found, self.late = self.late, []
        for step in found:
            self.journal.append(ScalarsArrived(at=0.0, step=step, scalars={"loss": 1.0}))
            self.late_lsn = self.journal.appended
        return bool(found)

    def forward_and_backward(self) -> None:
        self.optimizer.zero_grad()
        self.network(self.x).square().mean().backward()

    def step(self) -> None:
        self.forward_and_backward()
        self.optimizer.step()
        self.completed()

    def completed(self) -> None:
        self.step_now += 1
        self.journal.append(completed(self.step_now))

    def save_and_move(self) -> Key:
        """Save a capture, and before the optimizer's next step move a parameter by hand."""
        key = Key(self.step_now, False)
        self.saver.save(self.capture())
        with torch.no_grad():
            next(self.network.parameters()).mul_(2.0)
        self.step()
        return key

    def capture(self) -> Capture:
        taken = self.attached.capture(far=True)
        assert all(isinstance(t.owner, memory.Far) for t in taken.tensors.values())
        made = capture(self.run.name, self.entry, 0, 1, self.step_now)
        tree = made.tree | {"objects": taken.tree}
        return made._replace(tensors=taken.tensors, shared=frozenset(), tree=tree)

    def digests(self) -> dict[str, str]:
        here = self.attached.capture().tensors
        return {name: digest_of(tensor.view()) for name, tensor in here.items()}

    def committed(self, step: int) -> dict[str, str]:
        (found,) = (
            c.snapshot for c in model.commits(entries_of(self.run)) if c.snapshot.step == step
        )
        snapshot.verify(self.run, found)
        (part,) = snapshot.load_manifest(self.run, found).parts
        return {name: tensor.digest for name, tensor in part.tensors.items()}

    def close(self) -> None:
        self.saver.close()
        with contextlib.suppress(StorageFailed):
            self.journal.close()
