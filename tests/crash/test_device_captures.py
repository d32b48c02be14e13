"""Captures from a device, through the arena to the commit: each has the state of its boundary,
whatever training does to its tensors while they are copied.

The device is one that does nothing by itself: what was queued for it runs when training has to wait
for it, which is the latest that any device could be. Its memory is the host's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.protocol import capture, completed, entries_of, holder, open_stream
from walrecover import entries as model
from walrecover import snapshot
from walrecover.arena.memory import Arena
from walrecover.commits import Key
from walrecover.errors import StorageFailed
from walrecover.manifest import digest_of
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.session import copying
from walrecover.session.background import Background
from walrecover.shards import TensorData
from walrecover.snapshot import Capture
from walrecover.torch_adapter import devices, memory
from walrecover.torch_adapter.devices import Devices
from walrecover.torch_adapter.objects import Attached


class LazyEvent:
    def __init__(self) -> None:
        self.happened = threading.Event()
        self.error: Exception | None = None

    def record(self, stream: LazyStream) -> None:
        stream.queue.append(self.happened.set)

    def synchronize(self) -> None:
        assert self.happened.wait(60)
        if self.error:
            raise self.error


class LazyStream:
    """Training's own does at once what it is told, as the host's memory does."""

    def __init__(self, device: Lazy) -> None:
        self._device = device
        self.queue: list[Callable[[], object]] = []

    def wait_stream(self, stream: LazyStream) -> None:
        pass

    def wait_event(self, event: LazyEvent) -> None:
        self._device.run_until(event)

    def synchronize(self) -> None:
        self._device.run_until(None)


class Lazy:
    """`breaks`: its copies fail."""

    def __init__(self) -> None:
        self.breaks = False
        self.training, self.side = LazyStream(self), LazyStream(self)

    def current_stream(self) -> LazyStream:
        return self.training

    def new_stream(self) -> LazyStream:
        return self.side

    def on(self, stream: Any) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def event(self) -> LazyEvent:
        return LazyEvent()

    def copy(self, to: int, source: torch.Tensor, stream: Any) -> None:
        if self.breaks:
            raise RuntimeError("CUDA error: device lost")
        self.side.queue.append(lambda: devices.host(to, source).copy_(source))

    def run_until(self, event: LazyEvent | None) -> None:
        while self.side.queue and not (event and event.happened.is_set()):
            self.side.queue.pop(0)()


class Training:
    """A model with buffers that move in each forward pass, and its saver."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        self.said: list[str] = []
        self.run = RunDir(root / ".walrecover", "a-run")
        self.run.create()
        self.entry = begin_attempt(self.run, holder()).entry
        self.journal = open_stream(self.run, self.entry, 0, 1)
        self.saver = Background(
            slots=2, run=self.run, journal=self.journal, attempt=self.entry.number,
            nonce=self.entry.nonce, rank=0, world=1, verified=frozenset(), retention=9,
            say=self.said.append,
        )  # fmt: skip
        self.step_now = 0
        self.step()
        self.attached = Attached({"model": self.network, "optimizer": self.optimizer})

    def step(self) -> None:
        self.network(torch.randn(6, 4)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_now += 1
        self.journal.append(completed(self.step_now))

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


class NotPinned:
    def __init__(self, address: int, nbytes: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> Lazy:
    device = Lazy()
    monkeypatch.setattr(memory, "is_far", lambda tensor: True)
    monkeypatch.setattr(devices, "Pinned", NotPinned)
    monkeypatch.setattr(copying, "Devices", partial(Devices, device=lambda index: device))
    return device


@pytest.fixture
def training(lazy: Lazy, tmp_path: Path) -> Iterator[Training]:
    made = Training(tmp_path)
    yield made
    made.close()


def test_every_snapshot_has_the_state_of_its_boundary(training: Training) -> None:
    expected = {}
    for _ in range(4):
        step = training.step_now
        expected[step] = training.digests()
        assert training.saver.save(training.capture())
        training.step()  # moves the buffers, then the parameters: the copies come before
        assert training.saver.wait(Key(step, False))
    assert all(training.committed(step) == digests for step, digests in expected.items())
    assert len({digests["model.0.weight"] for digests in expected.values()}) == 4
    assert len({digests["model.1.running_mean"] for digests in expected.values()}) == 4


def test_the_parameters_are_copied_while_training_goes_on(training: Training, lazy: Lazy) -> None:
    training.saver.save(training.capture())
    training.step()  # seen: from here on they overlap
    training.saver.save(training.capture())
    parameters = len(list(training.network.parameters()))
    state = 3 * parameters
    assert len(lazy.side.queue) == parameters + state + 1, "the buffers are there, and no more is"
    training.network(torch.randn(6, 4)).square().mean().backward()
    assert len(lazy.side.queue) == parameters + state + 1
    training.optimizer.step()
    assert not lazy.side.queue


def test_what_the_script_moves_while_it_is_copied_is_no_snapshot_and_then_is_one(
    training: Training,
) -> None:
    training.saver.save(training.capture())
    training.step()
    torn = training.step_now
    training.saver.save(training.capture())
    with torch.no_grad():
        training.network[0].weight.mul_(2.0)
    training.step()
    assert not training.saver.wait(Key(torn, False))
    assert "was changed between the boundary" in training.saver.abandoned[Key(torn, False)]
    assert any(f"the capture of step {torn} was abandoned" in line for line in training.said)
    step, expected = training.step_now, training.digests()
    training.saver.save(training.capture())
    with torch.no_grad():
        training.network[0].weight.mul_(2.0)
    training.step()
    assert training.saver.wait(Key(step, False))
    assert training.committed(step) == expected


def test_a_device_that_is_gone_costs_the_capture_and_no_more(
    training: Training, lazy: Lazy
) -> None:
    first = training.step_now
    training.saver.save(training.capture())
    assert training.saver.wait(Key(first, False))
    lazy.breaks = True
    training.step()
    assert training.saver.save(training.capture())
    assert not training.saver.wait(Key(training.step_now, False))
    assert training.saver.abandoned[Key(training.step_now, False)] == "CUDA error: device lost"
    lazy.breaks = False
    training.step()
    last, expected = training.step_now, training.digests()
    assert training.saver.save(training.capture())
    training.step()
    assert training.saver.wait(Key(last, False))
    assert training.committed(last) == expected


def test_where_there_is_no_arena_it_is_copied_and_waited_for(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(slots: int, room: int) -> Arena:
        raise StorageFailed("no memory")

    monkeypatch.setattr(Arena, "create", none)
    step, expected = training.step_now, training.digests()
    assert training.saver.save(training.capture())
    assert any("no memory" in line for line in training.said)
    training.step()
    assert training.committed(step) == expected


def test_bytes_of_a_device_are_brought_near_as_they_are(lazy: Lazy) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    far = memory.tensor_data(tensor, "x", far=True)
    assert isinstance(far.owner, memory.Far)
    near: TensorData = memory.near(far)
    assert bytes(near.view()) == tensor.contiguous().numpy().tobytes()
    assert memory.near(near) is near
