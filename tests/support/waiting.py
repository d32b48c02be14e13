"""Waiting for something to come true: the one place where tests poll, always with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(true: Callable[[], Found], seconds: float = 60.0, pause: float = 0.001) -> Found:
    """What was true at last. A deadline is for what never comes: it may be generous."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(pause)
    return found
