"""The parameters that optimizers own: whether anything but an optimizer's step has moved them.

Owns what is marked at each boundary, without copying a parameter or touching a device's memory
from the host. What a step of an optimizer does is `keeping`'s to notice.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import torch

SAMPLE_BYTES = 16
_version = operator.attrgetter("_version")
_raw = operator.attrgetter("raw")
_groups = operator.attrgetter("param_groups")
_parameters = operator.itemgetter("params")
_address = torch.Tensor.data_ptr


class Owned:
    """The parameters that optimizers own, and whether something has gone by their steps.

    An optimizer's step is told by torch's hook. This sees operations that count versions, tensors
    that were exchanged, and writes past the counters (`.data`, fused kernels), by a few bytes from
    the middle of each. What resets or loads an optimizer's own state is seen by one entry of it.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._addresses: tuple[int, ...] = ()
        self._middles: list[Any] = []
        self._elsewhere: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._seen: Any = None
        self._states: Any = None

    def parameters(self) -> list[torch.Tensor]:
        groups = chain.from_iterable(map(_groups, self._optimizers))
        return [*chain.from_iterable(map(_parameters, groups))]

    def note(self) -> None:
        self._seen = self._look()
        self._states = self._marks()
        if self._elsewhere:
            with torch.no_grad():
                kept, now = zip(*self._elsewhere, strict=True)
                torch._foreach_copy_(kept, now)

    def moved(self) -> str:
        """What has, with its verb; "" for nothing."""
        if self._seen != self._look() or not all(
            torch.equal(kept.view(torch.uint8), now.view(torch.uint8))
            for kept, now in self._elsewhere
        ):
            return "parameters were"
        if self._states != self._marks():
            return "an optimizer's state was"
        return ""

    def _marks(self) -> list[Any]:
        """Of every optimizer's state: how much there is, and the versions of its first entry's
        tensors."""
        marks: list[Any] = []
        for optimizer in self._optimizers:
            state = optimizer.state
            first = next(iter(state.values()), None)
            entries = first.values() if isinstance(first, dict) else ()
            marks += id(state), len(state), id(first)
            marks += map(getattr, entries, repeat("_version"), repeat(None))
        return marks

    def _look(self) -> tuple[Any, ...]:
        parameters = self.parameters()
        addresses = tuple(map(_address, parameters))
        if addresses != self._addresses:
            self._addresses, self._middles = addresses, _middles(parameters)
            self._elsewhere = _elsewhere(parameters)
        return sum(map(_version, parameters)), addresses, [*map(_raw, self._middles)]


def _elsewhere(parameters: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each parameter on a device some numbers from its middle, and where they are copied to:
    without waiting for it."""
    parts = [
        flat[max(0, (flat.numel() - SAMPLE_BYTES) // 2) :][:SAMPLE_BYTES]
        for flat in (
            p.detach().view(-1) for p in parameters if not _on_host(p) and p.is_contiguous()
        )
    ]
    return [(torch.empty_like(part), part) for part in parts]


def _on_host(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu


def _middles(parameters: Sequence[torch.Tensor]) -> list[Any]:
    return [
        (ctypes.c_char * SAMPLE_BYTES).from_address(p.data_ptr() + (p.nbytes - SAMPLE_BYTES) // 2)
        for p in parameters
        if _on_host(p) and p.nbytes >= SAMPLE_BYTES and p.is_contiguous()
    ]
