"""What commands print: one JSON object, or a table. Owns the outer shape, not the content."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

VERSION = 1
_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\t\n"}


def write_json(body: dict[str, Any]) -> None:
    """One versioned object on stdout."""
    data = msgspec.json.encode({"version": VERSION, **body}, enc_hook=_hook)
    sys.stdout.write(msgspec.json.format(data, indent=2).decode() + "\n")
    sys.stdout.flush()


def write_json_line(body: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(body, enc_hook=_hook).decode() + "\n")


def _hook(value: Any) -> Any:
    return str(value)


def harmless(text: str) -> str:
    """Text that somebody else wrote, with its control characters shown: a terminal would obey."""
    return text.translate(_CONTROLS)


def write_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout. Cells are text, neither markup nor orders to a terminal: they may hold
    what a script printed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    Console().print(table)


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return ""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def clock(at: float) -> str:
    """A moment for people, in local time."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""
