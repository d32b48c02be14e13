"""Hand-written operations for the tests of the model.

Owns: short ways to write them down. All names lie in the root unless a directory is given.
"""

from __future__ import annotations

from dataclasses import replace as stamped

from tests.crash_states import ops

ROOT = ops.ROOT
PAGE = 4096


def create(path: str, ino: int, directory: int = ROOT) -> ops.Create:
    return ops.Create(path=path, dir=directory, name=path.split("/")[-1], ino=ino)


def mkdir(path: str, ino: int, directory: int = ROOT) -> ops.Mkdir:
    return ops.Mkdir(path=path, dir=directory, name=path.split("/")[-1], ino=ino)


def unlink(path: str, ino: int, directory: int = ROOT) -> ops.Unlink:
    return ops.Unlink(path=path, dir=directory, name=path.split("/")[-1], ino=ino)


def rename(source: str, path: str, ino: int) -> ops.Rename:
    return ops.Rename(
        path=path, dir=ROOT, name=path, ino=ino, source=source, source_dir=ROOT, source_name=source
    )


def write(ino: int, offset: int, data: bytes) -> ops.Write:
    return ops.Write(ino=ino, offset=offset, data=data)


def sync(ino: int, extent: tuple[int, int] | None = None) -> ops.Sync:
    return ops.Sync(ino=ino, directory=ino == ROOT, extent=extent)


def in_turn(*operations: ops.Op) -> list[ops.Op]:
    """Each begins after the one before has returned."""
    return [stamped(op, seq=2 * at + 1, begun=2 * at) for at, op in enumerate(operations)]


# Two pages of the letter o, durable under the name a.
DURABLE_A = (create("a", 1), write(1, 0, b"o" * 2 * PAGE), sync(1), sync(ROOT))
