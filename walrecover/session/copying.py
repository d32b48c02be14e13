"""Filling a slot: the host's memory at once, a device's beside the training.

Owns when a slot that is being filled is complete, or nothing. The order of a device's queues is
`torch_adapter.devices`'.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from walrecover.arena.filling import Begun, Filling, copy
from walrecover.arena.memory import Arena
from walrecover.arena.slots import Slot
from walrecover.snapshot import Capture
from walrecover.torch_adapter.devices import Copy, Devices, when_done
from walrecover.torch_adapter.memory import Far
from walrecover.wording import shortened


class Copying:
    """One rank's captures into an arena. `say` takes lines for people."""

    def __init__(self, arena: Arena, rank: int, say: Callable[[str], object]) -> None:
        self._arena, self._say = arena, say
        self._filling = Filling(arena, rank)
        self._devices: Devices | None = None
        self._thread: threading.Thread | None = None

    def free_slot(self, *, saver_lives: bool) -> Slot | None:
        """The slot for the next capture; None while all are held."""
        return self._filling.free_slot(saver_lives=saver_lives)

    def prepare(self, capture: Capture) -> None:
        """Pin the arena for the devices that captures like this one come from: it takes a while."""
        owners = [tensor.owner for tensor in capture.tensors.values()]
        for index in {owner.source.device.index for owner in owners if isinstance(owner, Far)}:
            self._of_devices().of(index, capture.step)

    def fill(
        self,
        slot: Slot,
        capture: Capture,
        fields: dict[str, Any],
        *,
        wanted: bool,
        copied: Callable[[], object],
        done: Callable[[], object],
        lost: Callable[[str], object],
    ) -> None:
        """Begin a capture. `done` or `lost` is called once it is complete, or cannot be: at once,
        or from another thread; `copied` before it counts as complete. Raises TooLarge, and then the
        slot still holds what it held."""
        given = (slot, capture.tensors, capture.shared, fields, capture.tree)
        if not any(isinstance(tensor.owner, Far) for tensor in capture.tensors.values()):
            copied()  # these came from wherever they were while the capture was made
            self._filling.fill(*given, wanted=wanted)
            done()
            return
        begun = self._filling.begin(*given, wanted=wanted)

        def complete() -> None:
            copied()
            self._filling.complete(begun)
            done()

        def fail(error: Exception) -> None:
            self._filling.give_up(begun)
            lost(shortened(str(error)))

        try:
            self._thread = when_done(self._begin(begun, capture.step), complete, fail)
        except RuntimeError as error:  # a device that is gone
            self._drain()
            fail(error)
        except BaseException:  # a KeyboardInterrupt between two copies
            self._drain()
            self._filling.give_up(begun)
            raise

    def _begin(self, begun: Begun, step: int) -> list[Copy]:
        """Queue what lies on devices, then copy what does not."""
        far = [move for move in begun.moves if isinstance(move[1].owner, Far)]
        under_way = self._of_devices().begin(far, step)
        copy(move for move in begun.moves if not isinstance(move[1].owner, Far))
        return under_way

    def _of_devices(self) -> Devices:
        if self._devices is None:
            self._devices = Devices(self._arena.address, self._arena.bytes, self._say)
        return self._devices

    def _drain(self) -> None:
        """Nobody must write into a slot any more once it is free."""
        if self._devices is not None:
            with contextlib.suppress(RuntimeError):
                self._devices.drain()

    def finish(self) -> None:
        """Wait until the capture before is complete, or given up."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def close(self) -> None:
        self.finish()
        if self._devices is not None:
            with contextlib.suppress(RuntimeError):
                self._devices.close()
