"""Whether the holder of an attempt lives: its process, or from another host its lease.

Owns what was last seen of leases. It only looks; nothing is decided by it but a word in a row.
"""

from __future__ import annotations

import time
from pathlib import Path

from walrecover import lease
from walrecover.entries import Holder
from walrecover.processes import is_alive


class Leases:
    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float, bool]] = {}

    def alive(self, holder: Holder, meeting: Path) -> bool | None:
        """None where it cannot be told, or not yet: a lease must be seen to move."""
        seen = is_alive(holder)
        return self._moves(meeting) if seen is None else seen

    def _moves(self, meeting: Path) -> bool | None:
        count, now = lease.counter(meeting), time.monotonic()
        known = self._seen.get(meeting)
        if known is None or known[0] != count:
            self._seen[meeting] = count, now, known is not None
            return True if known is not None else None
        if now - known[1] > lease.LENGTH_SECONDS:
            return False
        return True if known[2] else None
