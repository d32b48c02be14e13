"""The read model: one SQLite file with what the journals say, and the cursors behind it.

Owns the file, its lock and its transactions; the statements are `tables`'. Must not read journals,
or decide what a row says.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from walrecover.errors import BadInput, Fenced, StorageFailed, UnsupportedVersion
from walrecover_daemon import schema

FILES = ("", "-wal", "-shm")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Damaged(Exception):
    """The file is not what was written: it is to be made anew."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the read model for this process. Raises BadInput where another one does."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFailed(
            f"the read model cannot lie at {path} ({error.strerror}): give another place with "
            f"--read-model"
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise BadInput(
                f"another daemon (pid {holder}) keeps the read model {path}: end it, or give this "
                f"one its own with --read-model"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def put_aside(path: Path) -> Path:
    """Make room for a new read model; what was there is kept, once. Returns where it is."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in FILES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def remove(path: Path) -> None:
    """For a rebuild."""
    for suffix in FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def check_is_ours(path: Path) -> None:
    """Raises BadInput where what lies there is another program's, as far as can be told."""
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        try:
            application = conn.execute("PRAGMA application_id").fetchone()[0]
            tables = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except sqlite3.DatabaseError:
            return  # damaged: that is what a rebuild is for
    if tables and application != schema.APPLICATION:
        raise BadInput(f"{path} is another program's database: give another with --read-model")


def is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED


class ReadModel:
    """An open read model, for one thread. `owner`: the only one that may change it from now on."""

    def __init__(self, path: Path, owner: str) -> None:
        """Raises Damaged, BadInput (another program's), UnsupportedVersion or StorageFailed."""
        self.path, self._owner = path, owner
        try:
            self.conn = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            os.chmod(path, 0o600)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise Damaged(str(error)) from error
            raise StorageFailed(f"the read model {path} cannot be opened: {error}") from error
        self._inode = os.stat(path).st_ino

    def _prepare(self) -> None:
        conn = self.conn
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        application = conn.execute("PRAGMA application_id").fetchone()[0]
        tables = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != schema.APPLICATION and tables:
            raise BadInput(
                f"{self.path} is another program's database: give another with --read-model"
            )
        if version > len(schema.MIGRATIONS):
            raise UnsupportedVersion(
                f"the read model {self.path} was made by a newer release (version {version}, and "
                f"this one knows {len(schema.MIGRATIONS)}): 'walrecover-daemon rebuild' makes it "
                f"anew"
            )
        conn.execute("PRAGMA synchronous=NORMAL")
        conn.execute("PRAGMA wal_autocheckpoint=4000")
        conn.execute("PRAGMA cache_size=-8000")
        if conn.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise StorageFailed(
                f"the file system of {self.path} cannot share a read model: give a local place "
                f"with --read-model"
            )
        if conn.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise Damaged("its pages do not fit together")
        for number, migrate in enumerate(schema.MIGRATIONS[version:], start=version + 1):
            conn.execute("BEGIN IMMEDIATE")
            migrate(conn)
            conn.execute(f"PRAGMA application_id={schema.APPLICATION}")
            conn.execute(f"PRAGMA user_version={number}")
            conn.execute("COMMIT")
        conn.execute("INSERT OR REPLACE INTO owner VALUES (1, ?)", (self._owner,))

    def close(self) -> None:
        self.conn.close()

    def is_lost(self) -> bool:
        """Somebody has taken the file away from under this process."""
        try:
            return os.stat(self.path).st_ino != self._inode
        except FileNotFoundError:
            return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises Fenced where another daemon has taken the read model over."""
        conn = self.conn
        if conn.in_transaction:  # the end of the one before failed, too
            conn.execute("ROLLBACK")
        try:
            conn.execute("BEGIN IMMEDIATE")
            owner = conn.execute("SELECT name FROM owner").fetchone()
            if owner is None or owner[0] != self._owner:
                raise Fenced(f"another daemon has taken the read model {self.path} over")
            yield
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """A part of a transaction, that is undone by itself where it fails."""
        self.conn.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # all of it was rolled back already
                self.conn.execute("ROLLBACK TO part")
                self.conn.execute("RELEASE part")
            raise
        self.conn.execute("RELEASE part")
