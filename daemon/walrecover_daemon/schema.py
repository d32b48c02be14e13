"""The read model's tables, and how an older one becomes a newer one.

Owns SQL that makes tables, views and indices; no rows.
"""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from walrecover_daemon.columns import (
    AttemptRow,
    EventRow,
    RecoveryRow,
    RunRow,
    SnapshotRow,
    StepRow,
)

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION = 0x57414C44
"""SQLite's application_id: "WALD"."""

BUCKET = 256
"""Steps of one row of `curves`."""


def columns(row: type[Any]) -> dict[str, type]:
    """A row's columns with the types that SQLite knows."""
    return {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(row).items()}


def _first(conn: Connection) -> None:
    from sqlite_utils import Database  # it imports NumPy where there is one: only where needed

    db = Database(conn)
    db.table("owner").create({"only": int, "name": str}, pk="only")
    db.table("runs").create(
        {
            "id": int,
            "root": str,
            "name": str,
            "born": str,
            "mark": str,
            **columns(RunRow),
            "problem": str,
            "settled": int,
        },
        pk="id",
    )
    db.table("runs").create_index(["root", "name"], unique=True)
    db.table("streams").create(
        {
            "id": int,
            "run": int,
            "attempt": int,
            "nonce": str,
            "writer": str,
            "lsn": int,
            "chain": bytes,
            "folded_lsn": int,
            "folded_chain": bytes,
            "folded": bytes,
            "mark": str,
            "kind": str,
            "problem": str,
        },
        pk="id",
    )
    db.table("streams").create_index(["run", "attempt", "nonce", "writer"], unique=True)
    for name, row, key in (
        ("attempts", AttemptRow, ("run", "number", "nonce")),
        ("snapshots", SnapshotRow, ("run", "entry")),
        ("recoveries", RecoveryRow, ("run", "attempt")),
    ):
        db.table(name).create({"run": int, **columns(row)}, pk=key)
    _clustered(db, "steps", columns(StepRow), ("stream", "step"))
    _clustered(db, "events", columns(EventRow), ("stream", "lsn"))
    curve = {"stream": int, "bucket": int, "first": int, "last": int, "n": int}
    _clustered(
        db, "curves", {**curve, "low": float, "high": float, "mean": float}, ("stream", "bucket")
    )
    db.table("events").create_index(["run", "at"])
    db.create_view(
        "newest_snapshots",
        "SELECT runs.root, runs.name, snapshots.step, snapshots.committed_at, snapshots.status, "
        "max(snapshots.entry) AS entry "
        "FROM runs JOIN snapshots ON snapshots.run = runs.id GROUP BY runs.id",
    )


def _clustered(db: Database, name: str, fields: dict[str, type], key: tuple[str, ...]) -> None:
    """A table that lies in the order of its key: sqlite-utils makes none without a rowid."""
    sql = db.create_table_sql(name, fields, pk=key).rstrip().rstrip(";")
    db.execute(f"{sql} WITHOUT ROWID")


def _second(conn: Connection) -> None:
    """Hangs are asked for again and again, among any number of events."""
    conn.execute("CREATE INDEX hangs ON events (at) WHERE type='HangDetected'")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_first, _second)
"""The n-th makes version n of version n - 1."""
