"""Scalars given to `run.step`, without ever waiting for a device.

Owns the way from a loss tensor to a float: at once where it lies on the host, through an
asynchronous copy where it lies on a device.
"""

from __future__ import annotations

from typing import Any

import torch


def number(value: Any) -> float | None:
    """The value as a float, or None where it lies on a device and would have to be waited for.

    Raises TypeError for what is no scalar.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise TypeError(f"run.step() takes scalars; this tensor has {value.numel()} elements")
        return float(value.item()) if value.is_cpu else None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"run.step() takes scalars, not a {type(value).__name__}") from None


class Late:
    """Scalars on their way from a device, in order of step. `moving`: those not here yet. Calls
    must not overlap."""

    def __init__(self) -> None:
        self.moving: list[tuple[int, str, torch.Tensor, Any]] = []

    def start(self, step: int, name: str, value: torch.Tensor) -> None:
        """Begin the copy; nothing waits for it."""
        host = torch.empty((), dtype=value.dtype, pin_memory=value.device.type == "cuda")
        host.copy_(value.detach().reshape(()), non_blocking=True)
        event = None
        if value.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(value.device))
        self.moving.append((step, name, host, event))

    def arrived(self, wait: bool = False) -> list[tuple[int, dict[str, float]]]:
        """What has come in since, by step. `wait` for all of it (only at the end of a run)."""
        found: dict[int, dict[str, float]] = {}
        left = []
        for step, name, host, event in self.moving:
            if event is not None and wait:
                event.synchronize()
            if event is None or event.query():
                found.setdefault(step, {})[name] = float(host)
            else:
                left.append((step, name, host, event))
        self.moving = left
        return sorted(found.items())
