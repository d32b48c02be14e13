"""walrecover: the recovery journal for PyTorch training.

    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.loop(range(epochs)):
        for x, y in run.loop(loader):
            ...
            run.step(loss=loss)

Importing this costs nothing but the errors; torch is imported by the first use of `attach`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from walrecover.errors import (
    BadInput,
    BadLoss,
    Corrupt,
    Fenced,
    Mismatch,
    NothingToResume,
    NotRestored,
    RunBusy,
    Stopped,
    StorageFailed,
    Torn,
    UnsupportedVersion,
    WalrecoverError,
)

if TYPE_CHECKING:
    from walrecover.session import Run, attach

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "BadLoss",
    "Corrupt",
    "Fenced",
    "Mismatch",
    "NotRestored",
    "NothingToResume",
    "Run",
    "RunBusy",
    "Stopped",
    "StorageFailed",
    "Torn",
    "UnsupportedVersion",
    "WalrecoverError",
    "attach",
]


def __getattr__(name: str) -> Any:
    if name in ("attach", "Run"):
        from walrecover import session

        return getattr(session, name)
    raise AttributeError(f"module 'walrecover' has no attribute {name!r}")
