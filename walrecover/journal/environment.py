"""The LMDB environments that this process has open, each once.

Owns opening and closing: LMDB forbids a second opening in one process, so readers of one stream
share an environment, and the reader of a stream whose writer lives here shares the writer's.
Must not know what is stored.

A forked child inherits environments that it must not touch (LMDB's locks and reader slots belong
to the process that opened them), so each remembers its owner.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from walrecover.errors import (
    BadInput,
    Corrupt,
    StorageFailed,
    UnsupportedVersion,
    WalrecoverError,
)

DATA, LOCK = "data.mdb", "lock.mdb"

# The wheel holds two engines with incompatible files; an environment variable can flip its default.
_ENGINE = 0

_Identity = tuple[int, int]


class Environment:
    """An open environment, how many hold it, and the lock that keeps its map in place.

    `still` is held during every read transaction and while the map is resized: LMDB moves the map
    then, under the feet of the transactions of this process.
    """

    def __init__(self, handle: lmdb.Environment, identity: _Identity) -> None:
        self.handle = handle
        self.identity = identity
        self.owner = os.getpid()
        self.holders = 1
        self.still = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A short read transaction, following a map that a writer elsewhere has grown."""
        guard_owner(self.owner)
        with self.still:
            try:
                transaction = self._begin()
            except lmdb.MapResizedError:
                self.handle.set_mapsize(0)
                transaction = self._begin()
            with transaction:
                yield transaction

    def _begin(self) -> lmdb.Transaction[bytes]:
        try:
            return self.handle.begin(buffers=False)
        except lmdb.ReadersFullError:
            self.handle.reader_check()
            return self.handle.begin(buffers=False)


_open: dict[_Identity, Environment] = {}
_registry = threading.Lock()


def _renew_registry_lock() -> None:
    global _registry
    _registry = threading.Lock()


os.register_at_fork(after_in_child=_renew_registry_lock)


def guard_owner(owner: int) -> None:
    if owner != os.getpid():
        raise BadInput(
            f"this journal was opened by process {owner}, and process {os.getpid()} is a fork of "
            "it: use the journal in the process that opened it (DataLoader workers must not)"
        )


def open_for_writing(path: Path, *, map_size: int) -> Environment:
    """Open the environment of this process's own stream."""
    # metasync=False: see `writer`.
    handle = lmdb.open(
        os.fspath(path),
        map_size=map_size,
        subdir=True,
        sync=True,
        metasync=False,
        writemap=False,
        create=False,
        lib_version=_ENGINE,
    )
    environment = Environment(handle, _identity(path))
    with _registry:
        _open[environment.identity] = environment
    return environment


def build(path: Path, groups: Iterable[list[tuple[bytes, bytes]]], *, map_size: int) -> None:
    """Make an environment with these items in a new folder, one transaction for each group.
    Nothing is durable on return."""
    with lmdb.open(
        os.fspath(path),
        map_size=map_size,
        subdir=True,
        sync=False,
        metasync=False,
        writemap=False,
        mode=0o600,
        lib_version=_ENGINE,
    ) as handle:
        for items in groups:
            with handle.begin(write=True) as transaction:
                transaction.cursor().putmulti(items, append=True)


def open_for_reading(path: Path) -> Environment:
    """Open an environment read-only, or join the one that this process has open."""
    with _registry:
        identity = _identity(path)
        environment = _open.get(identity)
        if environment is not None:
            guard_owner(environment.owner)
            environment.holders += 1
            return environment
        environment = Environment(_open_read_only(path), identity)
        _open[identity] = environment
        return environment


def release(environment: Environment) -> None:
    """Let go; the last holder closes. In a forked child nothing happens."""
    if environment.owner != os.getpid():
        return
    with _registry:
        environment.holders -= 1
        if environment.holders == 0:
            _open.pop(environment.identity, None)
            environment.handle.close()


def any_open() -> bool:
    """Whether this process, or the one that it was forked from, has an environment open."""
    return bool(_open)


def _open_read_only(path: Path) -> lmdb.Environment:
    try:
        return _open_handle(path, lock=True)
    except (lmdb.ReadonlyError, lmdb.LockError):
        # A directory that cannot be written: nobody writes there, or nobody can be told of us.
        return _open_handle(path, lock=False)
    except lmdb.ReadersFullError:
        raise StorageFailed(f"{path}: too many readers have it open") from None


def _open_handle(path: Path, *, lock: bool) -> lmdb.Environment:
    return lmdb.open(
        os.fspath(path),
        map_size=0,  # as large as its writer made it
        subdir=True,
        readonly=True,
        create=False,
        lock=lock,
        lib_version=_ENGINE,
    )


def _identity(path: Path) -> _Identity:
    """The file behind a stream, which must be a plain one: LMDB would follow links and write."""
    data = _regular(path, DATA)
    if data is None:
        raise Corrupt(f"{path}: the stream has no {DATA}")
    _regular(path, LOCK)
    return data.st_dev, data.st_ino


def _regular(path: Path, name: str) -> os.stat_result | None:
    try:
        found = os.stat(path / name, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise Corrupt(f"{path}: {name} is not a regular file")
    return found


_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.PanicError,
    lmdb.BadTxnError,
    lmdb.BadValsizeError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.ProblemError,
)


def explain(error: lmdb.Error, path: Path) -> WalrecoverError:
    """LMDB's error as one of ours."""
    text = f"{path}: {str(error).removeprefix(f'{path}: ')}"
    if isinstance(error, lmdb.VersionMismatchError):
        return UnsupportedVersion(text)
    if isinstance(error, _DAMAGE):
        return Corrupt(text)
    return StorageFailed(text)
