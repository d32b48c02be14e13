"""How often the run has failed so far, and what its captures cost: told by whoever enters an
attempt to its rank 0.

Owns the file `attempts/<attempt>/failures.json`. It is never state: without it the pace of
snapshots is the default one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from walrecover.files import make_directory, replace_file
from walrecover.pace import Known, Rate

_NAME = "failures.json"


class _Told(msgspec.Struct, frozen=True):
    failures: int
    seconds: float
    cost: float | None = None


def tell(folder: Path, known: Known) -> None:
    """Write it, where the run has failed. Errors are harmless."""
    if known.rate.failures:
        with contextlib.suppress(OSError):
            make_directory(folder)
            replace_file(folder / _NAME, msgspec.json.encode(_Told(*known.rate, known.cost)))


def told(folder: Path) -> Known:
    """What was told, else that nothing has failed."""
    try:
        found = msgspec.json.decode((folder / _NAME).read_bytes(), type=_Told)
    except (OSError, msgspec.DecodeError):
        return Known()
    return Known(Rate(found.failures, found.seconds), found.cost)
