"""`make bench`: every benchmark, one table; exit code 1 where a bound does not hold.

Run it on a machine that does nothing else: the ratios are of one run, the disk is shared.
"""

from __future__ import annotations

import argparse
import importlib
import platform

from tests.bench.measure import show

BENCHMARKS = (
    "journal",
    "step",
    "snapshot",
    "arena",
    "memory",
    "restore",
    "start",
    "recovery",
    "restart",
    "supervisor",
    "data",
    "audit",
    "ledger",
    "daemon",
    "live",
    "scrub",
    "goodput",
)
WITH_A_GPU = ("cuda",)
"""Only by name."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS + WITH_A_GPU))
    names = parser.parse_args().names or BENCHMARKS
    rows = []
    for name in names:
        if name not in BENCHMARKS + WITH_A_GPU:
            parser.error(f"no benchmark {name!r}: there are {', '.join(BENCHMARKS + WITH_A_GPU)}")
        rows += importlib.import_module(f"tests.bench.bench_{name}").rows()
    title = f"Python {platform.python_version()}, {platform.machine()}"
    return 0 if show(title, rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
