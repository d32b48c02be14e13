"""What every benchmark uses: repeated timing, median and spread, ratios against a peer measured in
the same run, and one table of them all.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """Seconds: the median, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{duration(self.median)} [{duration(self.low)}, {duration(self.high)}]"


class Row(NamedTuple):
    """One line of the table. `ratio` of `ours` to `peer`; `bound` as the issue states it."""

    what: str
    ours: str
    peer: str
    ratio: float | None
    bound: str
    holds: bool | None


def sample(seconds: Sequence[float]) -> Sample:
    low, median, high = statistics.quantiles(seconds, n=4)
    return Sample(median, low, high)


def timed(call: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s"


def as_installed(bytecode: Path) -> dict[str, str]:
    """The environment of a process that finds its modules compiled, as after an installation.
    `bytecode`: a folder for that; the first process compiles."""
    environ = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": str(bytecode)}


def at_most(what: str, ours: Sample, peer: Sample, bound: float) -> Row:
    """Ours takes at most `bound` times as long as the peer."""
    ratio = ours.median / peer.median
    return Row(what, str(ours), str(peer), ratio, f"≤ {bound:.3g} ×", ratio <= bound)


def show(title: str, rows: Sequence[Row]) -> bool:
    """Print the table; False where a bound does not hold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("what", "ours: median [quartiles]", "beside", "ratio", "bound", "holds"):
        table.add_column(name)
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        verdict = "" if row.holds is None else ("yes" if row.holds else "NO")
        table.add_row(row.what, row.ours, row.peer, ratio, row.bound, verdict)
    Console(width=140).print(table)
    return all(row.holds is not False for row in rows)
