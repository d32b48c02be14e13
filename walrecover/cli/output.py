"""What commands print: one JSON object, or a table. Owns the outer shape, not the content."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

VERSION = 1
_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\t\n"}
_DIRECTIONS = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_CONTROLS |= {n: f"\\u{n:04x}" for n in _DIRECTIONS}


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
    """Text that somebody else wrote, with its control characters shown: a terminal would obey, and
    what turns the direction of writing would have it read as something else."""
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


def bytes_of(value: int) -> str:
    """A size for people."""
    size, unit = float(value), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{value} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


@contextlib.contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal. Is told how many bytes were done since it was told
    last, and how many there are in all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, advance=done, total=total)


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
    """A moment for people, in local time; the number, where no calendar has it."""
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""
    except (OverflowError, ValueError, OSError):
        return f"{at:g}"
