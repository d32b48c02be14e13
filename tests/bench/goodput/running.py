"""Run one contender, kill its training when the schedule says so, and hand back what it told."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.goodput.steplog import StepLog, parse
from walrecover.processes import kill_tree

PATIENCE_SECONDS = 120.0
"""How long nothing may come of a start, a restart or an end; none takes a tenth of it by itself."""
GRACE_SECONDS = 10.0
LOOK_SECONDS = 0.005


class DidNotRun(Exception):
    """Why a contender gave no figures."""


class Ran(NamedTuple):
    """`killed`: when, and which process."""

    log: StepLog
    killed: list[tuple[float, int]]


class Running:
    """A contender at work, seen through its log."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], folder: Path) -> None:
        self._path, self._output = folder / "log", folder / "output"
        self._size, self._log = 0, parse("")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environ, "RACE_LOG": str(self._path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> StepLog:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._size, self._log = size, parse(self._path.read_text())
        return self._log

    def trained_by(self, others: set[int]) -> bool:
        """Whether the newest step was made by a process that is none of these."""
        steps = self.log().steps
        return bool(steps) and steps[-1].pid not in others

    def made(self, total: int) -> bool:
        steps = self.log().steps
        return bool(steps) and steps[-1].number >= total

    def wait(self, so: Callable[[], bool], waiting_for: str) -> None:
        """Until it is so. Raises DidNotRun where it ends before, or nothing comes of it."""
        made, deadline = -1, 0.0
        while not so():
            if len(self.log().steps) != made:  # a process that only begins is no progress
                made, deadline = len(self.log().steps), time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise DidNotRun(f"no {waiting_for} in {PATIENCE_SECONDS:.0f} s{self._hint()}")
            if self._process.poll() is not None and not so():
                code = self._process.returncode
                raise DidNotRun(f"it ended with {code}, no {waiting_for}{self._hint()}")
            time.sleep(LOOK_SECONDS)

    def kill(self) -> tuple[float, int]:
        pid, at = self.log().steps[-1].pid, time.time()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            raise DidNotRun(f"its training ended by itself{self._hint()}") from None
        return at, pid

    def _hint(self) -> str:
        """The last error in its output, or its last words."""
        lines = [line.strip() for line in self._output.read_text(errors="replace").splitlines()]
        told = [line for line in lines if "Error: " in line] or [line for line in lines if line]
        return f": {told[-1][:300]}" if told else ""

    def end(self) -> None:
        """Until it has ended; then nothing is left of it, nor of what it left behind."""
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        kill_tree(GRACE_SECONDS, lambda *_: None)
        self._process.wait()


def run(
    command: Sequence[str],
    environ: dict[str, str],
    folder: Path,
    total: int,
    gaps: Sequence[float] = (),
) -> Ran:
    """To its end at step `total`, with a kill after each of these seconds of training. The time
    starts with the first step after the last kill: what does not train yet is not killed, nor what
    has made its last step. The caller is a subreaper. Raises DidNotRun."""
    folder.mkdir(parents=True, exist_ok=True)
    running, killed = Running(command, environ, folder), list[tuple[float, int]]()
    try:
        for gap in gaps:
            dead = {pid for _, pid in killed}
            running.wait(lambda dead=dead: running.trained_by(dead), "step")
            due = running.log().attempts()[-1][0].at + gap
            running.wait(lambda due=due: time.time() >= due or running.made(total), "kill")
            if running.made(total):
                break
            killed.append(running.kill())
        dead = {pid for _, pid in killed}
        running.wait(lambda: running.trained_by(dead), "step")
        running.wait(lambda: running.log().weights is not None, "end")
    except DidNotRun as reason:
        raise DidNotRun(f"{reason} (after {len(killed)} kills)") from None
    finally:
        running.end()
    return Ran(running.log(), killed)
