"""What an import says of the entries that came with it: their holder drives another copy.

Owns `runs/<run>/imported.json`. Without it a run that was imported beside the living one that it is
a copy of would be busy. Safety does not depend on it, as it does not on a lease.
"""

from __future__ import annotations

import msgspec

from walrecover.errors import Corrupt
from walrecover.files import read_regular, write_durably
from walrecover.rundir import RunDir

_NAME = "imported.json"
_MOST_BYTES = 64 * 1024


class Imported(msgspec.Struct, frozen=True):
    """`entries`: how many entries of the sequence the archive `file` had. `at`: Unix time."""

    file: str
    entries: int
    at: float


def write(run: RunDir, note: Imported) -> None:
    """Durable once the folder is. Raises OSError."""
    write_durably(run.path / _NAME, msgspec.json.encode(note) + b"\n")


def entries_of(run: RunDir) -> int:
    """How many entries came with an import; 0 for a run that began here."""
    try:
        found = msgspec.json.decode(read_regular(run.path, _NAME, _MOST_BYTES), type=Imported)
    except (OSError, Corrupt, msgspec.MsgspecError):
        return 0
    return found.entries
