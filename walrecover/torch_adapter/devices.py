"""Copying a state from a device into a slot, beside the training and fenced from it.

Owns the order of the queues. The copies run on a stream of their own. What the next forward pass
may write (buffers, and whatever is no parameter) is copied first, and training's own stream waits
for it at once; parameters and the optimizers' state are copied behind that, and training's stream
waits for them just before an optimizer's step. The host waits for neither: a thread does, and then
the slot is complete.

`Device` is the little that is needed of torch.cuda, so that the order is tested without one.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from walrecover.errors import StorageFailed

_cuda: Any = torch.cuda


class Event(Protocol):
    """`synchronize` blocks this thread, until what was queued before the event is done."""

    def record(self, stream: Any) -> object: ...
    def synchronize(self) -> object: ...


class Stream(Protocol):
    def wait_stream(self, stream: Any) -> object: ...
    def wait_event(self, event: Any) -> object: ...


class Device(Protocol):
    """What copies need of a device's runtime."""

    def current_stream(self) -> Stream: ...
    def new_stream(self) -> Stream: ...
    def on(self, stream: Any) -> AbstractContextManager[object]: ...
    def event(self) -> Event: ...
    def copy(self, to: int, source: torch.Tensor, stream: Any) -> None: ...


class Cuda:
    """torch.cuda, as a `Device`."""

    def current_stream(self) -> Stream:
        stream: Stream = _cuda.current_stream()
        return stream

    def new_stream(self) -> Stream:
        stream: Stream = _cuda.Stream()
        return stream

    def on(self, stream: Any) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = _cuda.stream(stream)
        return context

    def event(self) -> Event:
        event: Event = _cuda.Event()
        return event

    def copy(self, to: int, source: torch.Tensor, stream: Any) -> None:
        """Queue a copy into host memory, which must be pinned to be any good. The allocator is told
        that the stream still reads the source, should somebody free it meanwhile."""
        host(to, source).copy_(source, non_blocking=True)
        source.record_stream(stream)


def host(address: int, like: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of the same type and shape over host memory."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    nbytes = like.numel() * like.element_size()
    raw = (ctypes.c_char * nbytes).from_address(address)
    return torch.frombuffer(raw, dtype=torch.uint8).view(like.dtype).view(like.shape)


class Pinned:
    """Host memory that a device can read and write by itself, from here to `close`."""

    def __init__(self, address: int, nbytes: int) -> None:
        """Raises StorageFailed where it cannot be pinned (a limit on locked memory)."""
        self._address = address
        failed = int(_cuda.cudart().cudaHostRegister(address, nbytes, 0))
        if failed:
            raise StorageFailed(
                f"the arena cannot be pinned for the device (CUDA error {failed}): captures of "
                f"device tensors wait for their copies"
            )

    def close(self) -> None:
        if self._address:
            _cuda.cudart().cudaHostUnregister(self._address)
            self._address = 0


class Move(NamedTuple):
    """`to`: an address of the slot. `steady`: only an optimizer's step changes the source."""

    to: int
    source: torch.Tensor
    steady: bool


class DeviceCopies:
    """The copies of one device. `close` ends the fence."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._side = device.new_stream()
        self._fence: Event | None = None
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def begin(self, moves: Sequence[Move]) -> Event:
        """Queue the copies, behind all that training has queued so far. Returns what tells that
        they are done. Training may go on at once; state that anything but an optimizer's step
        changes must not be `steady`."""
        device, side = self._device, self._side
        training = device.current_stream()
        side.wait_stream(training)
        with device.on(side):
            soon = self._queue([move for move in moves if not move.steady])
            last = self._queue([move for move in moves if move.steady])
        training.wait_event(soon)
        self._fence = last
        return last

    def _queue(self, moves: Collection[Move]) -> Event:
        for move in moves:
            self._device.copy(move.to, move.source, self._side)
        event = self._device.event()
        event.record(self._side)
        return event

    def fence(self) -> None:
        """What is queued from here on may change everything: called before an optimizer's step, and
        to be called before a state is restored."""
        fence, self._fence = self._fence, None
        if fence is not None:
            self._device.current_stream().wait_event(fence)

    def _before_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        self.fence()

    def close(self) -> None:
        self._hook.remove()
        self.fence()


def when_done(
    event: Event, done: Callable[[], object], failed: Callable[[Exception], object]
) -> threading.Thread:
    """Call one of these, in a thread of its own: the copies are there, or the device is gone."""

    def wait() -> None:
        try:
            event.synchronize()
        except Exception as error:  # torch has its own for a device that is gone
            failed(error)
        else:
            done()

    thread = threading.Thread(target=wait, name="walrecover-copies", daemon=True)
    thread.start()
    return thread
