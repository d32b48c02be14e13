"""examples/tensorboard_curve.py, which is killed once it has logged so many steps."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def main(arguments: list[str], logged: int) -> None:
    """`logged`: how many steps this attempt may log; 0: all."""
    example: Any = importlib.import_module("examples.tensorboard_curve")
    left = [logged]

    class Writer(example.SummaryWriter):  # type: ignore[misc]
        def flush(self) -> None:
            super().flush()
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    example.SummaryWriter = Writer
    sys.argv = ["tensorboard_curve.py", *arguments]
    example.main()
