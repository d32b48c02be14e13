"""The child process that has torch, as `walrecover diff` sees it.

Owns starting it when something needs it, asking it, and its end. This process never imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from typing import Any

import msgspec

from walrecover.errors import BadInput


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


class Child:
    """Started by the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End it, and whatever a script started in it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def ask(self, *request: Any) -> Any:
        """The answer. Raises BadInput with what the child says, or with how it died."""
        process = self._start()
        assert process.stdin and process.stdout
        data = msgspec.msgpack.encode(request)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(len(data).to_bytes(8, "little") + data)
            process.stdin.flush()
        length = process.stdout.read(8)
        if len(length) < 8:
            raise BadInput(f"the process that compares {self._end(process)}; what it said is above")
        answer = msgspec.msgpack.decode(process.stdout.read(int.from_bytes(length, "little")))
        if isinstance(answer, dict) and "error" in answer:
            raise BadInput(answer["error"])
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            module = "walrecover.torch_adapter.comparing"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # so that what a script starts ends with it
            )
        return self._process

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        code = process.wait()
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
