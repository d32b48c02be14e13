"""Durable files: the few ways in which walrecover writes to a directory, each crash-safe.

Owns fsync, link, rename and the folders; knows nothing of what is written. An fsync that fails is
never tried again as if it had worked: the caller gives the name up (P9).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from walrecover.errors import Corrupt, StorageFailed
from walrecover.failpoints import failpoint


class SyncFailed(OSError):
    """An fsync failed: what it was for may be lost, and the next one would not say so."""


LEFTOVER_SECONDS = 3600.0
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8,16}")


@contextlib.contextmanager
def storage(what: str) -> Iterator[None]:
    """Turn an OSError into StorageFailed, saying what was being written."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageFailed(f"{what}: {error.strerror or error}{where}") from error


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(fd, path)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _sync(fd, path)
    finally:
        os.close(fd)


def _sync(fd: int, path: Path) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror, os.fspath(path)) from error


def make_directory(path: Path) -> None:
    """Create a folder and its parents (mode 0700), each durable in its own parent.

    A folder that is there already may have been made by somebody who died before it was durable;
    what lies above it was durable before it was made.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    with contextlib.suppress(PermissionError):  # then we cannot have made it
        sync_directory(path.parent)
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if not folder.is_dir():
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder)
                ) from None
        sync_directory(folder.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and make its bytes durable; its name is durable after `sync_directory`.

    Raises FileExistsError: names are written once.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        _sync(fd, path)
    finally:
        os.close(fd)


def create_if_absent(path: Path, data: bytes, *, written: str = "", linked: str = "") -> bool:
    """Create `path` with these bytes unless it exists; False where it does. Durable on return.

    The bytes are durable under a temporary name before `link` gives them their own, which never
    replaces. `written` and `linked` name the failpoints in between.
    """
    temporary = path.parent / f".{path.name}.{os.urandom(8).hex()}"
    try:
        write_durably(temporary, data)
        if written:
            failpoint(written)
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            return False
        if linked:
            failpoint(linked)
        sync_directory(path.parent)
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a cache or note that nothing depends on. Atomic for readers, not durable."""
    temporary = path.parent / f".{path.name}.{os.urandom(8).hex()}"
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_regular(root: Path, relative: str) -> int:
    """Open a file below `root` for reading, without following any link on the way.

    Raises Corrupt where the name leaves `root`, or a folder or the file itself is a link or no
    regular file; FileNotFoundError and other OSErrors as they come.
    """
    parts = relative.split("/")
    if not all(parts) or any(part in (".", "..") or "\0" in part for part in parts):
        raise Corrupt(f"{relative!r} is not a name below {root}")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
            os.close(folder)
            folder = inner
        fd = os.open(
            parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # ENOTDIR: where a folder must be
            raise Corrupt(f"{relative} is a link, or lies behind one") from None
        if error.errno in (errno.ENXIO, errno.ENAMETOOLONG):
            raise Corrupt(f"{relative} is not a regular file") from None
        raise
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Corrupt(f"{relative} is not a regular file")
    return fd


def read_regular(root: Path, relative: str, limit: int) -> bytes:
    """The bytes of a file below `root`, at most `limit`. Raises as `open_regular`, and Corrupt."""
    fd = open_regular(root, relative)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > limit:
            raise Corrupt(f"{relative} is larger than the {limit} bytes it may have")
        return file.read(size)  # never `limit`: all that is asked for is set aside first


def sweep(folder: Path) -> None:
    """Remove what writers that died left under temporary names, once it is an hour old: nobody
    takes that long from a temporary name to its own."""
    import shutil  # costs as much as all else here, and reading a run never needs it

    before = time.time() - LEFTOVER_SECONDS
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        for entry in found:
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime > before:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
