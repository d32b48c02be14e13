"""A run of a script over as many attempts as it takes, and what came of it.

Owns the folder of one run and the reading of its log and result.
"""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.forkserver import Child, ForkServer
from tests.support.waiting import await_savers

KILLED = -int(signal.SIGKILL)
SCRIPTS = "tests.end_to_end.scripts."


class Ended(NamedTuple):
    """`status` as a shell's, negative for a signal; `output`: what the attempt printed."""

    status: int
    output: str


class Trial:
    """One run directory, and the attempts made in it. `env` holds for all of them."""

    def __init__(
        self, server: ForkServer, folder: Path, script: str, env: dict[str, str] | None = None
    ) -> None:
        self.server, self.folder, self.script = server, folder, SCRIPTS + script
        self.env = {"WALRECOVER_EVERY": "1steps"} | (env or {})
        folder.mkdir(parents=True, exist_ok=True)
        self.attempts = 0

    def start(
        self,
        end: tuple[int, str, int] | None = None,
        env: dict[str, str] | None = None,
        log: str = "steps",
        **arguments: Any,
    ) -> Child:
        """Begin an attempt."""
        self.attempts += 1
        return self.server.start(
            "tests.support.attempt:attempt",
            folder=self.folder,
            output=self.folder / f"output-{self.attempts}",
            env=self.env | (env or {}),
            script=self.script,
            log=str(self.folder / log),
            end=end,
            **{"result": str(self.folder / "result")} | arguments,
        )

    def run(
        self,
        end: tuple[int, str, int] | None = None,
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> Ended:
        """One attempt, to its end, and to that of what it leaves behind."""
        status = self.start(end, env, **arguments).wait()
        await_savers(self.folder)
        return Ended(status, (self.folder / f"output-{self.attempts}").read_text())

    def run_until_done(self, end: tuple[int, str, int], limit: int = 60, **arguments: Any) -> int:
        """Attempt after attempt, each hit as `end` says, until one ends by itself. Returns how
        many were hit."""
        for hit in range(limit):
            status, output = self.run(end, **arguments)
            if status == 0:
                return hit
            expected = {KILLED} if end[2] == signal.SIGKILL else {128 + end[2]}
            assert status in expected, f"attempt {self.attempts} ended with {status}:\n{output}"
        raise AssertionError(f"not done after {limit} attempts:\n{output}")

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result").read_text())
        return found

    def losses(self, log: str = "steps") -> dict[int, set[str]]:
        """For every step, the bits of the losses of all its executions."""
        found = defaultdict(set)
        for line in (self.folder / log).read_text().splitlines():
            step, loss = line.split()
            found[int(step)].add(loss)
        return dict(found)
