"""Creating a stream's folder: whole, durable and under its name, or not at all.

Owns the steps between the first event and the name. Must not open the stream for appending.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from walrecover.errors import BadInput
from walrecover.failpoints import failpoint
from walrecover.files import make_directory, sync_directory, sync_file
from walrecover.journal import environment as environments
from walrecover.journal.environment import DATA, LOCK


def create_folder(path: Path, items: list[tuple[bytes, bytes]], map_bytes: int) -> None:
    """Make the environment at `path` with these items.

    Raises BadInput where the name is taken; a crash leaves a temporary name (a dot in front) that
    nobody reads.
    """
    make_directory(path.parent)
    temporary = path.parent / f".{path.name}.{os.urandom(8).hex()}"
    try:
        temporary.mkdir(mode=0o700)
        environments.build(temporary, [items], map_size=map_bytes)
        sync_file(temporary / DATA)
        sync_file(temporary / LOCK)
        sync_directory(temporary)
        failpoint("journal.create.built")
        try:
            # A stream's folder is never empty, and rename replaces only an empty one.
            temporary.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise BadInput(f"the stream {path} exists; streams are never reopened") from None
            raise
    except BaseException:
        _remove(temporary)
        raise
    failpoint("journal.create.renamed")
    sync_directory(path.parent)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (DATA, LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
