"""A script that knows nothing of walrecover: it goes on from the newest file that it finds, writes
a version, waits until that is kept, and dies at one event of writing the next; WHOM=supervisor
kills that one, and the script with it.

    overwrites.py SAVER NAME EVENTS...      events: their numbers, -1 for none: it ends in order
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from safetensors.numpy import load

from tests.support.savers import SAVERS, complete, contents_of, tensors, zipped
from tests.support.waiting import wait_until


def version_of(data: bytes, name: str) -> int:
    """Fails where the file is not whole: then it came back from a torn one."""
    if name.endswith(".safetensors"):
        number = int(load(data)["w"][0])
        assert data == tensors(number)
        return number
    for number in range(1, 100):
        if data == zipped(number):
            return number
    raise AssertionError("not one of the versions")


def newest_kept() -> int:
    records = Path(".walrecover").glob("runs/*/adopted/records/*.json")
    return max((int(record.stem) for record in records), default=0)


def main() -> None:
    saver, name, *events = sys.argv[1:]
    contents = contents_of(name)
    attempts = Path("attempts")
    done = attempts.read_text().split() if attempts.exists() else []
    path = Path("out", name)
    path.parent.mkdir(exist_ok=True)
    number = version_of(path.read_bytes(), name) if path.exists() else 0
    attempts.write_text(" ".join([*done, str(number)]))
    before = newest_kept()
    complete(SAVERS[saver](path, contents(number + 1)))
    wait_until(lambda: newest_kept() != before, pause=0.01)
    at = int(events[len(done)])
    for event, _ in enumerate(SAVERS[saver](path, contents(number + 2))):
        if event == at:
            if os.environ.get("WHOM") == "supervisor":
                os.kill(os.getppid(), signal.SIGKILL)
                signal.pause()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
