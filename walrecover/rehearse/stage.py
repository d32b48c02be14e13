"""A performance: the user's command under `walrecover run`, in a process of its own.

Owns starting it in a run directory of its own, its log, and its end, whatever happens to us. Must
not read what it writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from walrecover.processes import become_subreaper, descendants, die_with_parent
from walrecover.rehearse import tree
from walrecover.rundir import RunDir

RUN = "rehearsal"
PATIENCE_SECONDS = 20.0
TAIL_BYTES = 8192


class Performance:
    """A context manager: on leaving it, nothing that it started is left."""

    def __init__(
        self,
        command: Sequence[str],
        root: Path,
        log: Path,
        *,
        every: str | None,
        max_restarts: int,
    ) -> None:
        self.run = RunDir(root, RUN)
        self.log = log
        pace = ["--every", every] if every else []
        parent = os.getpid()
        become_subreaper()
        with log.open("wb") as output:
            # A process group of its own, so that a Ctrl-C meets only us, who end it.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "walrecover.cli", "run", "--name", RUN),
                    *("--dir", str(root), *pace),
                    *("--max-restarts", str(max_restarts), "--backoff", "0"),
                    *("--", *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(os.environ),
                process_group=0,
                preexec_fn=lambda: die_with_parent(parent),
            )
        self.pid = self._process.pid

    def __enter__(self) -> Performance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A second Ctrl-C has the supervisor kill the whole tree; SIGKILL is for when it hangs."""
        for _ in range(2):
            if self.exit_code() is not None:
                return
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
            return
        below = descendants(self.pid)
        self._process.kill()
        self._process.wait()
        for process in below:
            tree.kill(process)

    def exit_code(self) -> int | None:
        """The command's exit code, or None while it goes on."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait at most so long for the end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def last_words(self, lines: int = 12) -> str:
        """The end of what the command and its supervisor printed."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what was set for the user's own runs."""
    return {name: value for name, value in environ.items() if not name.startswith("WALRECOVER_")}
