"""Tries in a folder what a run does there, with small files that are removed again.

Owns the steps and their order; each is the very call that the run makes. Must not judge.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from walrecover.findings.facts import Outcome, Place

NAME = ".walrecover-rehearsal."
CONTENT = b"walrecover rehearses a write here\n"
PAGE = 4096
RESERVING = frozenset({"ext4", "xfs", "btrfs", "f2fs"})
"""Where fallocate takes no memory and no time."""


def rehearse(anchor: str, *, thorough: bool) -> tuple[dict[str, Outcome], float | None]:
    """The steps up to the first that failed, and the time that the storage gave the file."""
    trial = _Trial(os.path.join(anchor, NAME + os.urandom(8).hex()))
    steps: dict[str, Callable[[], None]] = {
        "make": trial.make,
        "write": trial.write,
        "rename": trial.rename,
        "link": trial.link,
        "exclusive": trial.link_again,
    }
    if thorough:
        # A flush takes as long as the disk is busy, and the run itself begins with one.
        steps |= {
            "fsync": trial.sync,
            "folder": trial.sync_folder,
            "direct": trial.write_direct,
        }
    found: dict[str, Outcome] = {}
    try:
        for name, step in steps.items():
            found[name] = _outcome(step)
            if found[name].errno:
                break
    finally:
        trial.remove()
    return found, trial.written_at


def _outcome(step: Callable[[], None]) -> Outcome:
    try:
        step()
    except OSError as error:
        return _of(error)
    return Outcome()


def _of(error: OSError) -> Outcome:
    return Outcome(error.errno or errno.EIO, error.strerror or str(error))


class _Trial:
    """One folder, and in it one file under three names."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._first, self._second, self._third = (
            os.path.join(folder, name) for name in ("written", "renamed", "linked")
        )
        self.written_at: float | None = None

    def make(self) -> None:
        os.mkdir(self._folder, 0o700)

    def write(self) -> None:
        with _open(self._first, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            os.write(fd, CONTENT)
            self.written_at = os.fstat(fd).st_mtime

    def sync(self) -> None:
        with _open(self._second, os.O_RDONLY) as fd:
            os.fsync(fd)

    def rename(self) -> None:
        os.rename(self._first, self._second)

    def link(self) -> None:
        os.link(self._second, self._third, follow_symlinks=False)

    def link_again(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.link(self._second, self._third, follow_symlinks=False)
            raise OSError(errno.EEXIST, "it replaced the file that was there")

    def sync_folder(self) -> None:
        with _open(self._folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
            os.fsync(fd)

    def write_direct(self) -> None:
        import mmap  # its memory begins at a page, as O_DIRECT asks

        with (
            _open(self._first, os.O_WRONLY | os.O_CREAT | os.O_DIRECT) as fd,
            mmap.mmap(-1, PAGE) as page,
        ):
            os.write(fd, page)

    def remove(self) -> None:
        for path in (self._first, self._second, self._third):
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)


@contextlib.contextmanager
def _open(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def reserve(place: Place, count: int) -> Outcome:
    """Ask for the room in a file without a name, which goes with its descriptor. Only where there
    seems to be room: it is the quotas that are looked for."""
    free = place.free_bytes or 0
    if not 0 < count <= free or place.mount is None or place.mount.kind not in RESERVING:
        return Outcome()
    try:
        with _open(place.anchor, os.O_RDWR | os.O_TMPFILE) as fd:
            _fallocate(fd, count)
    except OSError as error:
        if error.errno in (errno.EDQUOT, errno.ENOSPC):
            return _of(error)
    return Outcome()


def _fallocate(fd: int, count: int) -> None:
    """Not glibc's posix_fallocate, which writes all of it where the file system cannot."""
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, 0, 0, count):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
