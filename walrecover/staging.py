"""A run that is built aside, and there all at once or not at all.

Owns the temporary name below `runs/`, its sweeping, and the rename that replaces no run. What is
built is the caller's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from walrecover.errors import BadInput
from walrecover.files import make_directory, storage, sweep, sync_directory, sync_file
from walrecover.rundir import RunDir

_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_FRESH_SECONDS = 60.0


@contextlib.contextmanager
def aside(run: RunDir) -> Iterator[RunDir]:
    """The folders of a run under a temporary name, gone after the block unless it was placed.
    Raises StorageFailed."""
    staged = RunDir(run.root, f".{run.name}.{os.urandom(8).hex()}")
    sweep(staged.path.parent)
    try:
        with storage(f"cannot make {staged.path}"):
            for folder in (staged.sequence, staged.snapshots, staged.journal, staged.attempts):
                make_directory(folder)
        yield staged
    finally:
        import shutil  # reading a run never needs it

        shutil.rmtree(staged.path, ignore_errors=True)


def require_absent(run: RunDir, what: str) -> None:
    """Raises BadInput where something has the run's name. `what`: is to be made."""
    if os.path.lexists(run.path):
        raise BadInput(
            f"{run.path} is there already: choose another name for the {what}, by --name"
        )


def place(staged: RunDir, run: RunDir, what: str) -> None:
    """Give a staged run its name, not durable yet. Raises BadInput where that is taken.

    A run's folder is never empty, so that a rename replaces none that came meanwhile.
    """
    require_absent(run, what)
    try:
        os.rename(staged.path, run.path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            require_absent(run, what)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; a copy, durable, where there are no links."""
    try:
        os.link(source, target, follow_symlinks=False)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    import shutil

    shutil.copyfile(source, target, follow_symlinks=False)
    sync_file(target)


class Fresh:
    """Keeps what is being built from being swept as a dead builder's: call it now and then."""

    def __init__(self, *paths: Path) -> None:
        self._paths, self._next = paths, time.monotonic() + _FRESH_SECONDS

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _FRESH_SECONDS
            for path in self._paths:
                os.utime(path)


def sync_tree(folder: Path) -> None:
    """Make every name below a folder durable. Its files are already."""
    for path, _, _ in os.walk(folder):
        sync_directory(Path(path))
