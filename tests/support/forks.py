"""A small process without torch that forks a child for every crash.

Owns starting children, waiting until they end or stop, and never leaving one behind. It has one
thread and nothing open, so that what a child inherits is nothing. A child that is to stop and be
woken is known by its pid: signals are the caller's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parents[2]
_PRELOADED = ("tests.support.protocol", "tests.support.worker", "safetensors", "lmdb")


class Forks:
    """The server, as its clients see it. `with` ends it, and what it started."""

    def __init__(self, *, adopts: bool = False) -> None:
        """`adopts`: what its children leave behind falls to it, as to a supervisor."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks", *(["adopts"] if adopts else [])],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._living: set[int] = set()

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in list(self._living):
            self.kill(pid)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def start(self, target: str, **arguments: Any) -> int:
        """Fork a child that calls `target` ("module:function"); its pid."""
        pid: int = self._ask({"target": target, "arguments": arguments})
        self._living.add(pid)
        return pid

    def wait(self, pid: int) -> int | None:
        """Its exit status once it has ended, negative for a signal; None once it has stopped."""
        status: int | None = self._ask({"wait": pid})
        if status is not None:
            self._living.discard(pid)
        return status

    def wake(self, pid: int) -> int | None:
        os.kill(pid, signal.SIGCONT)
        return self.wait(pid)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        while self.wait(pid) is None:
            pass

    def call(self, target: str, **arguments: Any) -> int | None:
        return self.wait(self.start(target, **arguments))

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


# --- the server itself --------------------------------------------------------------------------


def serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                _be_child(request["target"], request["arguments"])
        print(json.dumps(answer), file=answers, flush=True)


def _wait(pid: int) -> int | None:
    _, status = os.waitpid(pid, os.WUNTRACED)
    return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def _be_child(target: str, arguments: dict[str, Any]) -> None:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        module, _, function = target.partition(":")
        code = getattr(importlib.import_module(module), function)(**arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    for name in _PRELOADED:
        importlib.import_module(name)
    if sys.argv[1:]:
        importlib.import_module("walrecover.processes").become_subreaper()
    gc.collect()
    gc.freeze()  # else a child's first collection copies all that it has inherited
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, out)
