"""WALRECOVER_MODE=disabled: the contract's shape, and nothing behind it."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any


class DisabledRun:
    """Runs the loop as if walrecover were not there. `global_step` counts."""

    stopping = False
    superseded_from = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.global_step = 0

    def loop(self, *iterables: Iterable[Any]) -> Iterable[Any]:
        return iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False)

    def enumerate(self, iterable: Iterable[Any]) -> Iterable[Any]:
        return builtins.enumerate(iterable)

    def step(self, **values: Any) -> None:
        self.global_step += 1

    def snapshot(self) -> None:
        """Nothing to do."""

    def finish(self) -> None:
        """Nothing to do."""
