"""What the supervisor tells the process that looks after adopted files, and where a script's count
of steps goes on. Owns both forms."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`tree`: the working directory. `writer`: of its stream. `watch`: settle, then watch until
    SIGTERM; else settle and end. `forget`: what was kept counts no more. `orderly`: the attempt
    ended with exit code 0."""

    root: str
    run: str
    journal: str = ""
    attempt: int
    nonce: str
    tree: str
    patterns: tuple[str, ...]
    keep: int
    writer: str
    watch: bool = False
    forget: bool = False
    orderly: bool = False


def base_path(meeting: Path) -> Path:
    """About how many steps had been made when the newest kept file was written."""
    return meeting / "adopted-step"
