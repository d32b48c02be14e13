"""The rehearsal's own directory, and that nothing of it stays behind unasked.

Owns where it lies, what is kept of it and when; must not touch anything beside it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from walrecover.errors import BadInput, WalrecoverError
from walrecover.rundir import find_root


class Scratch:
    """The rehearsal's own directory. `failed`: its logs are left behind."""

    def __init__(self, path: Path, kept: bool) -> None:
        self.path, self.kept = path, kept
        self.failed = False
        self.calm, self.twin, self.killed = path / "calm", path / "twin", path / "killed"
        self.calm_log, self.killed_log = path / "calm.log", path / "killed.log"
        self.twin_log = path / "twin.log"


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends us as an exception, so that what we started is ended and removed. Main thread
    only."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def scratch_directory(
    keep: Path | None, say: Callable[[str], None], *, kept: bool = False
) -> Iterator[Scratch]:
    """A directory beside `.walrecover` (the same disk), or below $TMPDIR where that is set. `kept`:
    also where nobody said in which one."""
    scratch = Scratch(_make_directory(keep), kept=kept or keep is not None)
    try:
        yield scratch
    except BadInput:
        raise
    except WalrecoverError:
        scratch.failed = True
        raise
    finally:
        if scratch.kept:
            say(f"the runs are kept in {scratch.path}")
        elif scratch.failed:
            for run in (scratch.calm, scratch.twin, scratch.killed):
                shutil.rmtree(run, ignore_errors=True)
            say(f"what the command printed is kept in {scratch.path}")
        else:
            shutil.rmtree(scratch.path, ignore_errors=True)


def _make_directory(keep: Path | None) -> Path:
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise BadInput(f"--keep {keep}: there is something already")
        keep.mkdir(parents=True, exist_ok=True)
        return keep.absolute()
    beside = find_root().parent
    suits = "TMPDIR" not in os.environ and os.access(beside, os.W_OK)
    folder = tempfile.mkdtemp(prefix=".walrecover-rehearsal-", dir=beside if suits else None)
    (Path(folder) / ".gitignore").write_text("*\n")
    return Path(folder).absolute()
