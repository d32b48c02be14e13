"""The supervisor's side of `--adopt`: the process that looks after the files, around each attempt.

Owns starting it, waiting for its looks, and what the command is told so that its steps are counted.
Must not look at a file itself: the supervisor's loop stays small and never waits for a disk.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from walrecover.adopt.job import Job
from walrecover.adopt.patterns import Pattern
from walrecover.adoption import KEEP
from walrecover.entries import AttemptEntry
from walrecover.processes import die_with_parent
from walrecover.rundir import RunDir
from walrecover.supervisor.notes import say
from walrecover.supervisor.signals import Signals
from walrecover.supervisor.stopping import Stopping

HOOK = Path(__file__).parents[1] / "adopt" / "hook"


class Keeper:
    """Looks after what `patterns` match below the working directory; nothing where there are none.

    Raises BadInput for a pattern that leads outside.
    """

    def __init__(
        self, patterns: Sequence[str], run: RunDir, *, forget: bool = False, keep: int = KEEP
    ) -> None:
        self._patterns, self._run, self._keep = tuple(patterns), run, keep
        self._tree = Path(os.getcwd())
        self._forget = forget
        for text in self._patterns:
            Pattern.parse(text, self._tree)
        self._said = False

    def told(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What the command needs so that its steps are counted."""
        if not self._patterns:
            return {}
        before = environ.get("PYTHONPATH")
        return {"PYTHONPATH": os.pathsep.join([str(HOOK), *([before] if before else [])])}

    def begin(self, entry: AttemptEntry, signals: Signals) -> None:
        """Put back what is torn, and watch from here on. A stop signal raises Interrupted."""
        if not self._patterns:
            return
        if not self._said:
            say(
                f"adopting {', '.join(self._patterns)}: these files are checked and protected. "
                f"Exact resume is not claimed at this level"
            )
        self._said = True
        with signals.interrupting():
            process = self._start(entry, signals, "adopter", watch=True)
            if not _await_word(process):
                say("nobody looks after the adopted files of this attempt")
        process.returncode = 0  # whoever reaps what the attempt leaves behind ends and reaps it
        self._forget = False

    def settle(
        self, entry: AttemptEntry, signals: Signals, stopping: Stopping, orderly: bool
    ) -> None:
        """The attempt has ended: keep what is whole, put back what is not. Cut short by a hurry:
        the next attempt begins with the same look."""
        if not self._patterns:
            return
        process = self._start(entry, signals, "settler", orderly=orderly)
        _await_word(process, stopping)
        if stopping.hurried:
            process.kill()
        process.wait()

    def _start(
        self,
        entry: AttemptEntry,
        signals: Signals,
        writer: str,
        *,
        watch: bool = False,
        orderly: bool = False,
    ) -> subprocess.Popen[bytes]:
        run = self._run
        job = Job(
            root=str(run.root),
            run=run.name,
            journal=str(run.journal_root or ""),
            attempt=entry.number,
            nonce=entry.nonce,
            tree=str(self._tree),
            patterns=self._patterns,
            keep=self._keep,
            writer=writer,
            watch=watch,
            forget=self._forget and watch,
            orderly=orderly,
        )
        supervisor = os.getpid()

        def before_exec() -> None:
            signals.forget_in_child()
            die_with_parent(supervisor)

        # -P: the working directory is the user's, and may hold a module of any name.
        with signals.held_back():
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "walrecover.adopt", msgspec.json.encode(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                process_group=0,
                preexec_fn=before_exec,
            )


def _await_word(process: subprocess.Popen[bytes], stopping: Stopping | None = None) -> bool:
    """Wait until it says that it is ready (True) or has ended; hear signals meanwhile."""
    assert process.stdout is not None
    with process.stdout as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if stopping is not None:
            poll.register(stopping.fileno(), select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if pipe.fileno() in ready:
                return bool(os.read(pipe.fileno(), 16))
            if stopping is not None and stopping():
                return False
