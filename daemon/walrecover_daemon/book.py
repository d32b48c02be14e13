"""The guard's own file: what was read back, done and told. It is no projection of journals.

Owns `read-model.guard.db`, its tables and the statements that change them. Must not decide what
they say.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from walrecover.errors import BadInput, StorageFailed, UnsupportedVersion
from walrecover_daemon.alerting import OLDEST_SECONDS, Change, Key, Said
from walrecover_daemon.readmodel import Damaged, is_damage, put_aside

VERSION = 1
APPLICATION = 0x57414C47
"""SQLite's application_id: "WALG"."""

KEPT_SECONDS = 30 * 86400.0
"""What is done with is forgotten so long after."""

TABLES = """
CREATE TABLE {0}guard (only INTEGER PRIMARY KEY, since REAL);
CREATE TABLE {0}readings (directory TEXT, run TEXT, manifest TEXT, at REAL, bytes INTEGER,
  problem TEXT, damaged INTEGER, PRIMARY KEY (directory, run, manifest)) WITHOUT ROWID;
CREATE TABLE {0}upkeep (directory TEXT, run TEXT, what TEXT, at REAL, amount INTEGER, bytes INTEGER,
  problem TEXT, PRIMARY KEY (directory, run, what)) WITHOUT ROWID;
CREATE TABLE {0}alerts (id TEXT PRIMARY KEY, kind TEXT, directory TEXT, run TEXT, subject TEXT,
  print TEXT, state TEXT, change INTEGER, at REAL, changed REAL, attempt INTEGER, step INTEGER,
  reason TEXT, delivery TEXT, tries INTEGER, answer TEXT,
  UNIQUE (kind, directory, run, subject));
CREATE INDEX {0}outbox ON alerts (changed) WHERE delivery = 'waiting';
"""


class ReadBack(NamedTuple):
    """A snapshot was read back."""

    directory: str
    run: str
    manifest: str
    at: float
    bytes: int
    problem: str
    damaged: bool


class Done(NamedTuple):
    """Upkeep was done for a run, or could not be. `amount`: snapshots retired this time; or up to
    which entry the vault has it. `bytes`: freed or sent this time."""

    directory: str
    run: str
    what: str
    at: float
    amount: int
    bytes: int
    problem: str


def path_of(readmodel: Path) -> Path:
    return readmodel.with_suffix(".guard.db")


def attach(conn: sqlite3.Connection, path: Path) -> None:
    """Let a connection that only reads see the tables as `guard.…`; they are empty where there is
    no such file. `conn` must know URIs."""
    try:
        conn.execute("ATTACH ? AS guard", (f"{path.absolute().as_uri()}?mode=ro",))
        conn.execute("SELECT 1 FROM guard.alerts LIMIT 1")
    except sqlite3.OperationalError:
        with contextlib.suppress(sqlite3.OperationalError):
            conn.execute("DETACH guard")
        conn.execute("ATTACH ':memory:' AS guard")
        for statement in TABLES.format("guard.").split(";"):
            conn.execute(statement)


class Book:
    """An open file, for one thread. Every method raises sqlite3.Error where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        os.chmod(path, 0o600)

    def close(self) -> None:
        self._conn.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise

    # --- what the guardian writes ---------------------------------------------------------------

    def since(self, now: float) -> float:
        """When this file was begun; a time that lies ahead was a wrong clock's."""
        (since,) = self._conn.execute("SELECT since FROM guard").fetchone()
        if since > now:
            self._conn.execute("UPDATE guard SET since=?", (now,))
        return float(min(since, now))

    def note(self, heard: Iterable[ReadBack | Done]) -> None:
        for one in heard:
            if isinstance(one, ReadBack):
                self._conn.execute("INSERT OR REPLACE INTO readings VALUES (?,?,?,?,?,?,?)", one)
            else:
                self._conn.execute(
                    "INSERT INTO upkeep VALUES (?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET at=?4,"
                    " amount=CASE what WHEN 'archive' THEN max(amount, ?5) ELSE amount + ?5 END,"
                    " bytes=bytes + ?6, problem=?7",
                    one,
                )

    def known(self, directory: str) -> dict[str, float]:
        """When each `<run>/<manifest>` was read last."""
        sql = "SELECT run || '/' || manifest, at FROM readings WHERE directory=?"
        return dict(self._conn.execute(sql, (directory,)).fetchall())

    def told(self) -> dict[Key, Said]:
        sql = "SELECT kind, directory, run, subject, print, state FROM alerts"
        return {(row[0], row[1], row[2], row[3]): Said(*row[4:]) for row in self._conn.execute(sql)}

    def tell(self, changes: Iterable[Change], now: float, delivery: str) -> None:
        """Put them into the outbox, or only note them."""
        for alert, state in changes:
            at = now if alert.at is None else alert.at
            what = (alert.print, state, at, now, alert.attempt, alert.step, alert.reason, delivery)
            self._conn.execute(
                "INSERT INTO alerts (id, kind, directory, run, subject, print, state, at, changed,"
                " attempt, step, reason, delivery, change, tries, answer)"
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,1,0,'')"
                " ON CONFLICT (kind, directory, run, subject) DO UPDATE SET print=excluded.print,"
                " at=CASE WHEN excluded.state='firing' AND state='resolved' THEN excluded.at"
                " ELSE at END, state=excluded.state,"
                " changed=excluded.changed, attempt=coalesce(excluded.attempt, attempt),"
                " step=coalesce(excluded.step, step), reason=excluded.reason,"
                " delivery=excluded.delivery, change=change + 1, tries=0, answer=''",
                (uuid.uuid4().hex, *alert.key, *what),
            )

    def drop(self, keys: Iterable[Key]) -> None:
        """Alerts about what is not there any more."""
        sql = "DELETE FROM alerts WHERE kind=? AND directory=? AND run=? AND subject=?"
        self._conn.executemany(sql, keys)

    def forget(self, now: float, cycle: float) -> None:
        """What is done with, and was for long; readings of what is not read any more."""
        lasting = "state='firing' AND kind IN ('stopped', 'rotten', 'unreadable', 'disk', 'stale')"
        self._conn.execute(
            f"DELETE FROM alerts WHERE changed < ? AND delivery != 'waiting' AND NOT ({lasting})",
            (now - KEPT_SECONDS,),
        )
        self._conn.execute(
            "DELETE FROM readings WHERE at < ?", (now - max(KEPT_SECONDS, 3 * cycle),)
        )

    # --- what the sender writes -----------------------------------------------------------------

    def next_waiting(self, now: float) -> dict[str, Any] | None:
        """The alert that is to be sent first. Those that waited for too long are given up."""
        self._conn.execute(
            "UPDATE alerts SET delivery='expired' WHERE delivery='waiting' AND changed < ?",
            (now - OLDEST_SECONDS,),
        )
        cursor = self._conn.execute(
            "SELECT * FROM alerts WHERE delivery='waiting' ORDER BY changed, rowid LIMIT 1"
        )
        row = cursor.fetchone()
        return (
            None if row is None else dict(zip([c[0] for c in cursor.description], row, strict=True))
        )

    def answered(self, row: dict[str, Any], delivery: str, answer: str) -> None:
        """Of the alert as it was sent: where it has changed since, it still waits."""
        self._conn.execute(
            "UPDATE alerts SET delivery=?, tries=tries + 1, answer=? WHERE id=? AND change=?",
            (delivery, answer, row["id"], row["change"]),
        )


def prepare(path: Path, now: float) -> str:
    """Make the file, or look whether it is whole. Returns what is to be said ("": nothing).

    Raises BadInput (another program's), StorageFailed, UnsupportedVersion.
    """
    said = ""
    for _ in range(2):
        try:
            _prepare(path, now)
            return said
        except (Damaged, sqlite3.Error, OSError) as error:
            damaged = isinstance(error, Damaged) or (
                isinstance(error, sqlite3.Error) and is_damage(error)
            )
            if said or not damaged:
                raise StorageFailed(f"{path} cannot be opened: {error}") from error
            said = (
                f"what was told and read back is damaged, and begun anew: it is {put_aside(path)}"
            )
    return said


def _prepare(path: Path, now: float) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30.0)) as conn:
        os.chmod(path, 0o600)
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        application = conn.execute("PRAGMA application_id").fetchone()[0]
        tables = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION:
            raise BadInput(f"{path} is another program's database: choose another --read-model")
        if version > VERSION:
            raise UnsupportedVersion(
                f"{path} was made by a newer release (version {version}, and this one knows "
                f"{VERSION}): use that release, or remove it"
            )
        if conn.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise Damaged("its pages do not fit together")
        conn.execute("PRAGMA journal_mode=WAL")
        if version == 0:
            conn.execute("BEGIN IMMEDIATE")
            for statement in TABLES.format("").split(";"):
                conn.execute(statement)
            conn.execute("INSERT INTO guard VALUES (1, ?)", (now,))
            conn.execute(f"PRAGMA application_id={APPLICATION}")
            conn.execute(f"PRAGMA user_version={VERSION}")
            conn.execute("COMMIT")
