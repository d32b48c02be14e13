"""One finding: what was found, and with it what follows and what to do."""

from __future__ import annotations

import msgspec

from walrecover.findings.table import CHECKS, OK


class Finding(msgspec.Struct, frozen=True):
    check: str
    level: str
    found: str

    @property
    def consequence(self) -> str:
        return "" if self.level == OK else CHECKS[self.check].consequence

    @property
    def remedy(self) -> str:
        return "" if self.level == OK else CHECKS[self.check].remedy

    @property
    def sentence(self) -> str:
        """On one line: what was found, the consequence, the remedy."""
        return f"{self.found} → {self.consequence} → {self.remedy}"

    def __str__(self) -> str:
        return f"{self.level}: {self.sentence}"


def size(count: float) -> str:
    """Bytes for people."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.1f} {units[0]}" if count < 10 and count % 1 else f"{count:.0f} {units[0]}"
