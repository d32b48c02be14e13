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
from collections.abc import Iterator, Mapping, Sequence
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
        memory_every: str | None = None,
        max_restarts: int,
    ) -> None:
        self.run = RunDir(root, RUN)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        pace = ["--every", every] if every else []
        pace += ["--memory-every", memory_every] if memory_every else []
        line = [
            *(sys.executable, "-P", "-m", "walrecover.cli", "run", "--name", RUN),
            *("--dir", str(root), *pace, "--max-restarts", str(max_restarts), "--backoff", "0"),
            *("--policy", os.devnull),  # the kills are ours, and no policy's affair
            "--no-preflight",  # of a scratch folder that nobody keeps
            *("--", *command),
        ]
        become_subreaper()
        try:
            with _held_back() as mask:
                self._process = self._start(line, mask)
        except BaseException:  # what was held back
            self.end()
            raise
        self.pid = self._process.pid

    def _start(self, line: Sequence[str], mask: set[signal.Signals]) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def before_exec() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            die_with_parent(parent)

        with self.log.open("wb") as output:
            return subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(os.environ),
                process_group=0,  # its own, so that a Ctrl-C meets only us, who end it
                preexec_fn=before_exec,
            )

    def __enter__(self) -> Performance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """A second Ctrl-C has the supervisor kill the whole tree; SIGKILL is for when it hangs."""
        process = self._process
        if process is None:
            return
        for seconds in (0.5, PATIENCE_SECONDS):
            if process.poll() is not None:
                return
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        if process.poll() is None:
            below = descendants(process.pid)
            process.kill()
            process.wait()
            for one in below:
                tree.kill(one)

    def saving(self, nonce: str) -> set[str]:
        """The snapshots of this attempt that were begun and have no manifest yet."""
        names = (name for name in os.listdir(self.run.snapshots) if name.endswith(nonce))
        return {
            name for name in names if not (self.run.snapshots / name / "manifest.json").exists()
        }

    def exit_code(self) -> int | None:
        """The command's exit code, or None while it goes on."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait at most so long for the end."""
        assert self._process is not None
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


@contextlib.contextmanager
def _held_back() -> Iterator[set[signal.Signals]]:
    """Inside, SIGINT and SIGTERM wait; gives the mask as it was. What they raise while a fork runs
    Python's own hooks would be ignored there, and the interrupt lost."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield {signal.Signals(number) for number in mask}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what was set for the user's own runs."""
    return {name: value for name, value in environ.items() if not name.startswith("WALRECOVER_")}
