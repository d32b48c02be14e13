"""How often the run has failed so far: told by whoever enters an attempt to its rank 0.

Owns the file `attempts/<attempt>/failures.json`. It is never state: without it the pace of
snapshots is the default one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from walrecover.files import make_directory, replace_file
from walrecover.pace import Rate

_NAME = "failures.json"


class _Told(msgspec.Struct, frozen=True):
    failures: int
    seconds: float


def tell(folder: Path, rate: Rate) -> None:
    """Write it, where there is anything to tell. Errors are harmless."""
    if rate.failures:
        with contextlib.suppress(OSError):
            make_directory(folder)
            replace_file(folder / _NAME, msgspec.json.encode(_Told(*rate)))


def told(folder: Path) -> Rate:
    """What was told, else that nothing has failed."""
    try:
        found = msgspec.json.decode((folder / _NAME).read_bytes(), type=_Told)
    except (OSError, msgspec.DecodeError):
        return Rate(0, 0.0)
    return Rate(found.failures, found.seconds)
