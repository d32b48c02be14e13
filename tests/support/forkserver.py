"""A process that has torch imported and forks a child for every attempt of a script.

Owns starting children and telling how they ended; what a child does is the caller's. Starting
Python with torch takes a second or two, a fork a few milliseconds, and a test of resuming needs
dozens of processes that really die. A child is a session of its own, writes to a file, and has
random generators seeded afresh: nothing it inherits may pass for something restored.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
PR_SET_CHILD_SUBREAPER = 36


class Child:
    """A started child. `wait` returns its status as a shell's: negative for a signal."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._pidfd = os.pidfd_open(pid)

    def wait(self, seconds: float = 60.0) -> int:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        ended = poll.poll(seconds * 1000)
        if not ended:
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self._pidfd)
        status = int(self._server.ask({"wait": self.pid})["status"])
        if not ended:
            raise TimeoutError(f"process {self.pid} was at work after {seconds:.0f} s")
        return status


class ForkServer:
    """The server, as its clients see it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, target: str, *, folder: Path, output: Path, env: Mapping[str, str], **arguments: Any
    ) -> Child:
        """Fork a child that calls `target` ("module:function") in `folder`. `env` is added to the
        environment; stdout and stderr are appended to `output`."""
        request = {
            "target": target,
            "folder": str(folder),
            "output": str(output),
            "env": dict(env),
            "arguments": arguments,
        }
        return Child(self, self.ask(request)["pid"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def adopt(self, yes: bool) -> None:
        """Whether what its children leave behind falls to it, as to a supervisor."""
        self.ask({"adopt": yes})

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


# -- the server itself ----------------------------------------------------------------------------


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer until there are no more requests."""
    for line in requests:
        request = json.loads(line)
        if "adopt" in request:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, request["adopt"])
            answer = {}
        elif "wait" in request:
            answer = {"status": _reap(request["wait"])}
        else:
            pid = os.fork()
            if pid == 0:
                _be_child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)


def _reap(pid: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # workers of its loaders would notice only after seconds
    return status


def _be_child(request: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        for fd, flags, path in (
            (0, os.O_RDONLY, os.devnull),
            (1, os.O_WRONLY | os.O_CREAT | os.O_APPEND, request["output"]),
        ):
            opened = os.open(path, flags, 0o600)
            os.dup2(opened, fd)
            os.close(opened)
        os.dup2(1, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(request["folder"])
        os.environ.update(request["env"])
        _seed_afresh()
        code = _call(request["target"], request["arguments"])
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _seed_afresh() -> None:
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()


def _call(target: str, arguments: dict[str, Any]) -> int:
    """Call it as if it were a script. Returns the exit code."""
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(**arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _warm_up() -> None:
    """Import what scripts import, the first optimizer's imports included."""
    import gc

    import torch
    import torch.distributed
    import torchdata.stateful_dataloader
    import tqdm

    import walrecover.session

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    assert tqdm and walrecover.session and torchdata.stateful_dataloader
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _warm_up()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed must not pass for an answer
    serve(sys.stdin, out)
