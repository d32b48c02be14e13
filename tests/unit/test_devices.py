"""Copies from a device: whatever order its queues run in, a slot holds the state of its boundary.

The device is a fake one, of queues that run later, in any order that their waits allow."""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from walrecover.torch_adapter.devices import Copy, DeviceCopies, Move, Torn, host, when_done


class FakeEvent:
    def __init__(self) -> None:
        self.happened = False
        self.told = threading.Event()
        self.error: Exception | None = None

    def record(self, stream: FakeStream) -> None:
        stream.queue.append((lambda: True, self._happen))

    def _happen(self) -> None:
        self.happened = True
        self.told.set()

    def synchronize(self) -> None:
        assert self.told.wait(10)
        if self.error:
            raise self.error


class FakeStream:
    """Work that was queued: (may it run?, what it does)."""

    def __init__(self) -> None:
        self.queue: list[tuple[Callable[[], bool], Callable[[], object]]] = []

    def add(self, work: Callable[[], object]) -> None:
        self.queue.append((lambda: True, work))

    def wait_event(self, event: FakeEvent) -> None:
        self.queue.append((lambda: event.happened, lambda: None))

    def wait_stream(self, other: FakeStream) -> None:
        event = FakeEvent()
        event.record(other)
        self.wait_event(event)

    def synchronize(self) -> None:
        while self.queue:
            may, work = self.queue.pop(0)
            assert may(), "it waits for another stream"
            work()


class FakeDevice:
    def __init__(self) -> None:
        self.streams = [FakeStream()]
        self._current = self.streams[0]
        self.records = False

    def current_stream(self) -> FakeStream:
        return self._current

    def new_stream(self) -> FakeStream:
        self.streams.append(FakeStream())
        return self.streams[-1]

    @contextlib.contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def event(self) -> FakeEvent:
        return FakeEvent()

    def copy(self, to: int, source: torch.Tensor, stream: FakeStream) -> None:
        assert stream is self._current
        stream.add(lambda: host(to, source).copy_(source))

    def is_recording(self) -> bool:
        return self.records

    def run(self, dice: random.Random) -> None:
        """Everything that is queued, in some order that the waits allow."""
        while any(stream.queue for stream in self.streams):
            ready = [s for s in self.streams if s.queue and s.queue[0][0]()]
            assert ready, "the streams wait for each other"
            _, work = dice.choice(ready).queue.pop(0)
            work()


class Training:
    """A parameter, its optimizer and a buffer, on the fake device."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.weight.grad = torch.ones(2)
        self.buffer = torch.tensor([10, 20])
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.memory = (ctypes.c_char * 64)()
        self.base = ctypes.addressof(self.memory)

    def moves(self) -> list[Move]:
        return [
            Move(self.base, self.weight.detach(), True),
            Move(self.base + 32, self.buffer, False),
        ]

    def forward(self) -> None:
        self.device.current_stream().add(lambda: self.buffer.add_(1))

    def step(self) -> None:
        """An optimizer's step: the hooks run now, and what it does is queued."""
        real, self.optimizer.param_groups[0]["params"] = self.weight, []
        self.optimizer.step()
        self.optimizer.param_groups[0]["params"] = [real]
        self.replay()

    def replay(self) -> None:
        """As a CUDA graph that holds an optimizer's step: no hook sees it."""
        self.device.current_stream().add(lambda: self.weight.data.sub_(1.0))

    def captured(self) -> tuple[list[float], list[int]]:
        return (
            host(self.base, self.weight.detach()).tolist(),
            host(self.base + 32, self.buffer).tolist(),
        )


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_a_capture_is_the_state_of_its_boundary_in_any_order_of_the_queues(
    seed: int, seen: bool
) -> None:
    steps = 1 + seed % 3
    training = Training()
    copies = DeviceCopies(training.device, 0)
    try:
        for _ in range(steps):
            training.forward()
            training.step() if seen else training.replay()
        expected = [1.0 - steps, 2.0 - steps], [10 + steps, 20 + steps]
        copies.begin(training.moves(), steps)
        for _ in range(2):
            training.forward()
            training.step() if seen else training.replay()
        training.device.run(random.Random(seed))
        assert training.captured() == expected
        assert training.weight.tolist() == [-1.0 - steps, 0.0 - steps]
    finally:
        copies.close()


@pytest.mark.parametrize(
    "left_out", ["buffers", "parameters", "what came before", "steps that nobody sees"]
)
def test_without_a_wait_some_order_tears_the_capture(
    left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test above."""
    wait = FakeStream.wait_event

    def torn(seed: int) -> bool:
        training = Training()
        copies = DeviceCopies(training.device, 0)
        training.forward()
        training.step()
        if left_out == "what came before":
            monkeypatch.setattr(FakeStream, "wait_stream", lambda *_: None)
        if left_out == "buffers":
            monkeypatch.setattr(FakeStream, "wait_event", lambda *_: None)
            # `wait_stream` waits by an event of its own: that one stays.
            monkeypatch.setattr(FakeStream, "wait_stream", lambda s, o: _wait(s, o, wait))
        copies.begin(training.moves(), 1)
        monkeypatch.setattr(FakeStream, "wait_event", wait)
        if left_out == "parameters":
            monkeypatch.setattr(copies, "_copy", None)
        training.forward()
        training.replay() if left_out == "steps that nobody sees" else training.step()
        training.device.run(random.Random(seed))
        copies.close()
        monkeypatch.undo()
        return training.captured() != ([0.0, 1.0], [11, 21])

    assert any(torn(seed) for seed in range(60))


def _wait(stream: FakeStream, other: FakeStream, wait: Callable[..., None]) -> None:
    event = FakeEvent()
    event.record(other)
    wait(stream, event)


def test_training_waits_for_buffers_only_until_an_optimizer_steps() -> None:
    training = Training()
    copies = DeviceCopies(training.device, 0)
    training.step()
    copies.begin(training.moves(), 1)
    main, side = training.device.streams
    before = len(main.queue)
    training.forward()
    assert len(main.queue) == before + 1, "nothing to wait for in a forward pass"
    training.step()
    assert len(main.queue) == before + 3, "a wait, and the step"
    training.step()
    assert len(main.queue) == before + 4, "only the first step waits"
    assert len(side.queue) == 1 + 2 + 2, "a wait, two copies, two events"
    copies.close()
    training.step()
    assert len(main.queue) == before + 5


def test_a_parameter_that_the_script_moves_meanwhile_is_found_and_from_then_on_waited_for() -> None:
    """As where weights are normalised before each forward pass."""
    training = Training()
    copies = DeviceCopies(training.device, 0)
    training.step()
    copy = copies.begin(training.moves(), 1)
    with torch.no_grad():
        training.weight.mul_(2.0)
    heard: list[Exception] = []
    thread = when_done([copy], lambda: heard.append(AssertionError()), heard.append)
    training.step()
    training.device.run(random.Random(0))
    thread.join(10)
    (torn,) = heard
    assert isinstance(torn, Torn)
    assert "changed between the boundary and the optimizer's step" in str(torn)

    again = copies.begin(training.moves(), 2)
    expected = training.weight.tolist()
    training.device.current_stream().add(lambda: training.weight.data.mul_(2.0))
    training.step()
    training.device.run(random.Random(1))
    assert not again.torn_by()
    assert training.captured()[0] == expected
    copies.close()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("there", [True, False])
def test_a_step_that_is_recorded_into_a_graph_is_waited_for_from_then_on(
    there: bool, seed: int
) -> None:
    """Its hook is called while it is recorded, and not when it is replayed."""
    training = Training()
    copies = DeviceCopies(training.device, 0)
    training.step()
    copy = copies.begin(training.moves(), 1)
    if there:  # as behind the synchronisation with which torch.cuda.graph begins
        training.device.run(random.Random(0))
        assert copy.torn_by() == ""
    training.device.records = True
    main = len(training.device.streams[0].queue)
    training.optimizer.step()
    assert len(training.device.streams[0].queue) == main, "nothing of this is part of the graph"
    training.device.records = False
    training.replay()
    training.device.run(random.Random(seed))
    assert bool(copy.torn_by()) is not there
    assert "recorded into a graph" in copy.torn_by() or there

    training.optimizer.step()  # seen, as a warm-up's is
    copies.begin(training.moves(), 2)
    expected = training.weight.tolist()
    training.replay()
    training.device.run(random.Random(seed))
    assert training.captured()[0] == expected
    copies.close()


def copy_until(event: FakeEvent) -> Copy:
    made = Copy([])
    made.done = event
    return made


def test_the_slot_is_complete_once_the_copies_are_there_and_never_on_a_lost_device() -> None:
    said: list[Any] = []
    good, bad = FakeEvent(), FakeEvent()
    bad.error = RuntimeError("CUDA error: device lost")
    waiting = when_done([copy_until(good)], lambda: said.append("done"), said.append)
    assert said == []
    good._happen()
    waiting.join(10)
    bad._happen()
    when_done([copy_until(bad)], lambda: said.append("done"), said.append).join(10)
    assert said == ["done", bad.error]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_host_memory_as_a_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    like = torch.ones(shape, dtype=dtype)
    memory = (ctypes.c_char * 64)()
    made = host(ctypes.addressof(memory), like)
    assert (made.dtype, made.shape) == (like.dtype, like.shape)
    made.copy_(like)
    nbytes = like.numel() * like.element_size()
    assert bytes(memory)[:nbytes] == bytes(like.flatten().view(torch.uint8).tolist())
