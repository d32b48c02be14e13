"""Files of the user's tree: opened without following a link, told apart by their stamps, put aside.

Owns the names `<file>.torn-<n>`, and refusing a file that became another one meanwhile. Must not
decide which file is put aside, nor write any bytes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

from walrecover.adopt.patterns import ASIDE, Stamp
from walrecover.errors import WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.files import sync_directory

NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
"""How a file system, or the kernel for another user's file, refuses a hard link."""


class NotKept(WalrecoverError):
    """This version cannot be kept. `torn`: because it is not whole."""

    def __init__(self, message: str, *, torn: bool = False, format: str = "opaque") -> None:
        super().__init__(message)
        self.torn, self.format = torn, format


class Changed(NotKept):
    """The file is another one than when it was looked at: somebody writes it."""


def open_stamped(path: Path) -> tuple[IO[bytes], Stamp]:
    file = open_file(path)
    return file, Stamp.of(os.fstat(file.fileno()))


def open_file(path: Path) -> IO[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags), "rb")


def create_file(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def put_aside(target: Path, found: Stamp) -> Path:
    """Give what lies there a second name beside its own; the same one if it has one already.
    Where there are no hard links, that is its only one from then on. Raises Changed."""
    require_same(target, found)
    taken = _asides(target)
    for aside in taken:
        if aside.stat().st_ino == found.inode:
            return aside
    number = 1 + max((_number(aside) for aside in taken), default=0)
    aside = target.with_name(f"{target.name}{ASIDE}{number}")
    try:
        os.link(target, aside, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        target.rename(aside)
    sync_directory(target.parent)
    failpoint("adopt.aside")
    return aside


def thin_asides(target: Path, keep: int) -> None:
    for aside in sorted(_asides(target), key=_number)[:-keep]:
        aside.unlink(missing_ok=True)


def require_same(path: Path, stamp: Stamp | None, *, or_gone: bool = False) -> None:
    try:
        now: Stamp | None = Stamp.of(os.lstat(path))
    except FileNotFoundError:
        now = None
    if now != stamp and not (or_gone and now is None):
        raise Changed(f"{path} is being written")


def require_inside(folder: Path, tree: Path) -> None:
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(tree)):
        raise NotKept(f"{folder} leads outside {tree} now")


def _asides(target: Path) -> list[Path]:
    start = target.name + ASIDE
    return [
        target.with_name(name)
        for name in os.listdir(target.parent)
        if name.startswith(start) and name[len(start) :].isdecimal()
    ]


def _number(aside: Path) -> int:
    return int(aside.name.rpartition(ASIDE)[2])
