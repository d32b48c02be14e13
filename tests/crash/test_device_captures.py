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

from tests.support.on_device import Training
from walrecover.arena.layout import Header
from walrecover.arena.memory import Arena
from walrecover.arena.slots import Slot
from walrecover.commits import Key
from walrecover.errors import StorageFailed
from walrecover.session import copying
from walrecover.shards import TensorData
from walrecover.torch_adapter import devices, memory
from walrecover.torch_adapter.devices import Devices


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

    def is_recording(self) -> bool:
        return False

    def run_until(self, event: LazyEvent | None) -> None:
        while self.side.queue and not (event and event.happened.is_set()):
            self.side.queue.pop(0)()


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
    training.forward_and_backward()
    assert len(lazy.side.queue) == parameters + state + 1
    training.optimizer.step()
    assert not lazy.side.queue


def test_what_the_script_moves_while_it_is_copied_is_no_snapshot_and_then_is_one(
    training: Training,
) -> None:
    training.saver.save(training.capture())
    training.step()  # seen: from here on copies overlap
    torn = training.save_and_move()
    assert not training.saver.wait(torn)
    assert training.saver.abandoned[torn] == devices.MOVED
    assert any(f"the capture of step {torn.step} was abandoned" in line for line in training.said)
    expected = training.digests()
    whole = training.save_and_move()
    assert training.saver.wait(whole)
    assert training.committed(whole.step) == expected


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


def test_what_came_from_the_device_with_a_capture_outlives_the_process_as_the_capture_does(
    training: Training, lazy: Lazy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right behind the completion word, nothing of that step must be missing."""
    completed, survived = Slot.complete, []

    def complete(slot: Slot, header: Header) -> None:
        survived.append(0 < training.late_lsn <= training.journal.committed)
        training.late_lsn = 0
        completed(slot, header)

    monkeypatch.setattr(Slot, "complete", complete)
    for keep in (training.saver.save, training.saver.hold):
        training.late = [training.step_now]
        assert keep(training.capture())
        training.step()
        training.saver.drain()
    assert survived == [True, True]


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
