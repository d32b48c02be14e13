"""`python -m walrecover.scrubber DIR --cycle 1d`: reads snapshots back until its input ends.

Owns the process's place in the scheduler, and its end: whoever started it holds its standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from pathlib import Path

import msgspec

from walrecover.errors import BadInput
from walrecover.retention import parse_age
from walrecover.scrubbing import Scrubbed, Scrubber


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m walrecover.scrubber", description=__doc__)
    parser.add_argument("directory", type=Path, help="a .walrecover directory")
    parser.add_argument("--cycle", default="1d", metavar="TIME", help="such as 12h or 7d")
    given = parser.parse_args()
    try:
        cycle = parse_age(given.cycle, "--cycle")
    except BadInput as error:
        print(f"walrecover: {error}", file=sys.stderr)
        return error.exit_code
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    scrubber = Scrubber(given.directory.absolute(), _say, cycle=cycle)
    wait = 0.0
    while not _has_ended(wait):
        wait = scrubber.turn()
    return 0


def _say(done: Scrubbed) -> None:
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")
    sys.stdout.flush()


def _has_ended(wait: float) -> bool:
    """Whether standard input has, waiting for that so many seconds."""
    ready, _, _ = select.select([0], [], [], wait)
    return bool(ready) and not os.read(0, 4096)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        sys.exit(main())
