"""Copying a state from devices into a slot, beside the training and fenced from it.

Owns the order of the queues. The copies run on a stream of their own. What the next forward pass
may write (buffers, and whatever is no parameter) is copied first, and training's own stream waits
for it at once; parameters and the optimizers' state are copied behind that, and training's stream
waits for them just before an optimizer's step. The host waits for neither: a thread does, and then
the slot is complete.

Two things could tear such a capture. Where an optimizer's step cannot be seen (it is part of a
CUDA graph that is replayed), training's stream waits for everything at once: from the recording of
such a graph on, and wherever steps were made that nobody saw. What the script itself changes
between a boundary and the step behind it is found by the tensors' versions.

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
from walrecover.shards import TensorData
from walrecover.torch_adapter.memory import Far

_cuda: Any = torch.cuda


class Event(Protocol):
    """`synchronize` blocks this thread, until what was queued before the event is done."""

    def record(self, stream: Any) -> object: ...
    def synchronize(self) -> object: ...


class Stream(Protocol):
    def wait_stream(self, stream: Any) -> object: ...
    def wait_event(self, event: Any) -> object: ...
    def synchronize(self) -> object: ...


class Device(Protocol):
    """What copies need of a device's runtime."""

    def current_stream(self) -> Stream: ...
    def new_stream(self) -> Stream: ...
    def on(self, stream: Any) -> AbstractContextManager[object]: ...
    def event(self) -> Event: ...
    def copy(self, to: int, source: torch.Tensor, stream: Any) -> None: ...
    def is_recording(self) -> bool:
        """Whether what is queued now goes into a graph, to be replayed later."""
        ...


class Cuda:
    """One device of torch.cuda, as a `Device`."""

    def __init__(self, index: int | None) -> None:
        self._index = index

    def current_stream(self) -> Stream:
        stream: Stream = _cuda.current_stream(self._index)
        return stream

    def new_stream(self) -> Stream:
        stream: Stream = _cuda.Stream(self._index)
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

    def is_recording(self) -> bool:
        return bool(_cuda.is_current_stream_capturing())


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


class Copy:
    """Copies under way, of which `moves` are read while training goes on. `done` tells when all are
    there; `torn_by`, what changed meanwhile what only an optimizer's step may change."""

    def __init__(self, moves: Sequence[Move]) -> None:
        self._lock = threading.Lock()
        self._versions = [(m.source, _version(m.source)) for m in moves if m.steady]
        self._torn_by: str | None = None
        self.done: Event

    def torn_by(self) -> str:
        """In words; "" for nothing. Asked before whoever may change it goes on, or when all is
        copied: the first time tells, whichever thread asks."""
        with self._lock:
            if self._torn_by is None:
                moved = any(_version(source) != seen for source, seen in self._versions)
                self._torn_by, self._versions = MOVED if moved else "", []
            return self._torn_by

    def tear(self, reason: str) -> None:
        """Nothing will wait for the copies before what they read may change: unless they are there
        by now, they are torn."""
        with self._lock:
            if self._torn_by is None:
                self._torn_by, self._versions = reason, []


MOVED = (
    "a parameter, or an optimizer's state, was changed between the boundary and the optimizer's "
    "step, while it was copied from the device; from here on training waits for these copies"
)
RECORDED = (
    "an optimizer's step was recorded into a graph while its state was copied from the device; "
    "from here on training waits for these copies"
)


def _version(tensor: torch.Tensor) -> int:
    """How often it was changed in place. (An inference tensor does not count.)"""
    return 0 if tensor.is_inference() else tensor._version


class DeviceCopies:
    """The copies of one device, from global step `step` on. `close` ends the fence."""

    def __init__(self, device: Device, step: int) -> None:
        self._device = device
        self._side = device.new_stream()
        self._copy: Copy | None = None
        self._last: Copy | None = None
        self._was_torn = self._was_recorded = False
        self._seen, self._step = 0, step
        # A compiled step is no place for it: what it queues must come before all of the step.
        hook = torch.compiler.disable(self._before_step)  # type: ignore[no-untyped-call]
        self._hook = register_optimizer_step_pre_hook(hook)

    def begin(self, moves: Sequence[Move], step: int) -> Copy:
        """Queue the copies of the state behind step `step`, behind all that training has queued so
        far. Training may go on at once; state that anything but an optimizer's step changes must
        not be `steady`."""
        device, side = self._device, self._side
        training = device.current_stream()
        overlaps = self._sees_steps(step)
        side.wait_stream(training)
        copy = Copy(moves if overlaps else ())
        with device.on(side):
            soon = self._queue([move for move in moves if not move.steady])
            copy.done = self._queue([move for move in moves if move.steady])
        training.wait_event(soon if overlaps else copy.done)
        self._copy = self._last = copy
        return copy

    def _sees_steps(self, step: int) -> bool:
        """Whether an optimizer's step was seen for every step that was made since the last time,
        none is in a graph, and nothing but such steps has ever torn a copy."""
        made, seen = step - self._step, self._seen
        self._step, self._seen = step, 0
        if self._last is not None and self._last.torn_by():
            self._was_torn = True
        return 0 < made <= seen and not (self._was_torn or self._was_recorded)

    def _queue(self, moves: Collection[Move]) -> Event:
        for move in moves:
            self._device.copy(move.to, move.source, self._side)
        event = self._device.event()
        event.record(self._side)
        return event

    def fence(self) -> None:
        """What is queued from here on may change everything: called before an optimizer's step, and
        to be called before a state is restored."""
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.torn_by()
            self._device.current_stream().wait_event(copy.done)

    def _before_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        if self._device.is_recording():  # a graph must not wait for anything outside of it
            self._was_recorded = True
            copy, self._copy = self._copy, None
            if copy is not None:
                copy.tear(RECORDED)
            return
        self._seen += 1
        self.fence()

    def drain(self) -> None:
        """Wait until nothing is under way any more."""
        self._side.synchronize()

    def close(self) -> None:
        self._hook.remove()
        self.fence()


class Devices:
    """The copies of all devices that a state lies on, into memory that they reach by themselves."""

    def __init__(
        self,
        address: int,
        nbytes: int,
        say: Callable[[str], object],
        device: Callable[[int | None], Device] = Cuda,
    ) -> None:
        self._device = device
        self._copies: dict[int | None, DeviceCopies] = {}
        self._pinned: Pinned | None = None
        try:
            self._pinned = Pinned(address, nbytes)
        except StorageFailed as error:  # the copies wait for the host, then, and are right
            say(str(error))

    def begin(self, moves: Sequence[tuple[int, TensorData]], step: int) -> list[Copy]:
        """Queue the copies of a state behind step `step`, whose tensors are all `Far`."""
        by_device: dict[int | None, list[Move]] = {}
        for to, tensor in moves:
            assert isinstance(tensor.owner, Far)
            source, _, steady = tensor.owner
            by_device.setdefault(source.device.index, []).append(Move(to, source, steady))
        return [self.of(index, step).begin(some, step) for index, some in by_device.items()]

    def of(self, index: int | None, step: int) -> DeviceCopies:
        """The copies of a device, which sees its optimizers' steps from the first call on."""
        if index not in self._copies:
            self._copies[index] = DeviceCopies(self._device(index), step)
        return self._copies[index]

    def drain(self) -> None:
        for copies in self._copies.values():
            copies.drain()

    def close(self) -> None:
        """Nothing must be under way any more."""
        for copies in self._copies.values():
            copies.close()
        if self._pinned is not None:
            self._pinned.close()


class Torn(Exception):
    """A state that was changed while it was copied."""


def when_done(
    copies: Collection[Copy], done: Callable[[], object], failed: Callable[[Exception], object]
) -> threading.Thread:
    """Call one of these, in a thread of its own: the copies are there, or the device is gone, or
    what was copied is not one state."""

    def wait() -> None:
        try:
            for copy in copies:
                copy.done.synchronize()
            for copy in copies:
                if reason := copy.torn_by():
                    raise Torn(reason)
        except Exception as error:  # torch has its own for a device that is gone
            failed(error)
        else:
            done()

    thread = threading.Thread(target=wait, name="walrecover-copies", daemon=True)
    thread.start()
    return thread
