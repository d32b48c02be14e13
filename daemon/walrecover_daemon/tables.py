"""The statements on the read model's tables.

Owns every statement that reads or changes a row for the follower, inside the transactions that
`readmodel` opens. Must not decide what a row says.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from walrecover.journal import START, Cursor
from walrecover_daemon import schema
from walrecover_daemon.columns import (
    AttemptRow,
    EventRow,
    RecoveryRow,
    RunRow,
    SnapshotRow,
    StepRow,
    Story,
)
from walrecover_daemon.stepping import Batch, merged, told


class StreamRow(NamedTuple):
    """A stream as the read model knows it. `lsn`, `chain`: the cursor behind the newest event that
    has a row; `folded_lsn`, `folded_chain`: behind the newest that is in `folded`."""

    id: int
    attempt: int
    nonce: str
    writer: str
    lsn: int
    chain: bytes
    folded_lsn: int
    folded_chain: bytes
    folded: bytes
    mark: str
    kind: str
    problem: str


class Tables:
    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    # --- runs and streams -----------------------------------------------------------------------

    def runs(self) -> list[tuple[int, str, str, str, str, int]]:
        """(id, root, name, id of its first entry, its sequence's mark, whether its rows are all up
        to date)."""
        sql = "SELECT id, root, name, born, mark, settled FROM runs"
        return [tuple(row) for row in self._conn.execute(sql)]

    def add_run(self, root: str, name: str) -> int:
        sql = (
            "INSERT INTO runs (root, name, born, mark, state, problem, settled)"
            " VALUES (?, ?, '', '', '', '', 0)"
        )
        return int(self._conn.execute(sql, (root, name)).lastrowid or 0)

    def marks(self) -> Iterator[tuple[str, str, int, str, str, str]]:
        """(root, run, attempt, nonce, writer, mark) of every stream."""
        yield from self._conn.execute(
            "SELECT root, name, attempt, nonce, writer, streams.mark"
            " FROM streams JOIN runs ON run=runs.id"
        )

    def streams(self, run: int) -> list[StreamRow]:
        found = self._conn.execute(
            "SELECT id, attempt, nonce, writer, lsn, chain, folded_lsn, folded_chain, folded, mark,"
            " kind, problem FROM streams WHERE run=?",
            (run,),
        )
        return [StreamRow(*row) for row in found]

    def add_stream(self, run: int, attempt: int, nonce: str, writer: str) -> int:
        at = (START.lsn, START.chain)
        sql = "INSERT INTO streams VALUES (NULL,?,?,?,?,?,?,?,?,X'','','','')"
        cursor = self._conn.execute(sql, (run, attempt, nonce, writer, *at, *at))
        return int(cursor.lastrowid or 0)

    def set_stream(self, stream: int, cursor: Cursor, mark: str, kind: str, problem: str) -> None:
        self._conn.execute(
            "UPDATE streams SET lsn=?, chain=?, mark=?, kind=?, problem=? WHERE id=?",
            (*cursor, mark, kind, problem, stream),
        )

    def set_folded(self, stream: int, at: Cursor, folded: bytes) -> None:
        self._conn.execute(
            "UPDATE streams SET folded_lsn=?, folded_chain=?, folded=? WHERE id=?",
            (*at, folded, stream),
        )

    def void_stream(self, stream: int, *, forget: bool) -> None:
        """Its rows go; it goes itself where it is to be forgotten."""
        conn = self._conn
        for table in ("steps", "curves", "events"):
            conn.execute(f"DELETE FROM {table} WHERE stream=?", (stream,))
        if forget:
            conn.execute("DELETE FROM streams WHERE id=?", (stream,))
        else:
            self.set_stream(stream, START, "", "", "")
            self.set_folded(stream, START, b"")

    def void_run(self, run: int) -> None:
        """Another run has its name: nothing of it stays."""
        for row in self.streams(run):
            self.void_stream(row.id, forget=True)
        for table in ("attempts", "snapshots", "recoveries"):
            self._conn.execute(f"DELETE FROM {table} WHERE run=?", (run,))

    # --- events ---------------------------------------------------------------------------------

    def add(self, stream: int, batch: Batch) -> None:
        """The rows of a batch: scalars that came late, then steps, then everything else."""
        conn = self._conn
        touched = {row[1] // schema.BUCKET for row in batch.steps}
        for late in batch.late:
            where = (stream, late.step)
            sql = "SELECT loss, scalars FROM steps WHERE stream=? AND step=?"
            found = conn.execute(sql, where).fetchone()
            if found is not None:
                said = told(merged(found[0], found[1], late.scalars))
                conn.execute(
                    "UPDATE steps SET loss=?, scalars=? WHERE stream=? AND step=?", (*said, *where)
                )
                touched.add(late.step // schema.BUCKET)
        conn.executemany(_insert("steps", StepRow, "REPLACE"), batch.steps)
        conn.executemany(_insert("events", EventRow), batch.events)
        for bucket in touched:
            self._bucket(stream, bucket)

    def _bucket(self, stream: int, bucket: int) -> None:
        first = bucket * schema.BUCKET
        self._conn.execute(
            "INSERT OR REPLACE INTO curves SELECT stream, ?, min(step), max(step), count(loss),"
            " min(loss), max(loss), avg(loss) FROM steps WHERE stream=? AND step BETWEEN ? AND ?",
            (bucket, stream, first, first + schema.BUCKET - 1),
        )

    def advance(self, run: int, attempt: tuple[int, str], last: int, latest: float) -> None:
        """What a batch of steps alone changes; the rest of the run's rows is not settled."""
        conn = self._conn
        conn.execute(
            "UPDATE runs SET latest=max(coalesce(latest, 0), ?), settled=0 WHERE id=?",
            (latest, run),
        )
        if last:
            conn.execute(
                "UPDATE attempts SET last_step=max(coalesce(last_step, 0), ?)"
                " WHERE run=? AND number=? AND nonce=?",
                (last, run, *attempt),
            )
            conn.execute(
                "UPDATE runs SET last_step=coalesce((SELECT last_step FROM attempts WHERE run=:run"
                " AND last_step>0 ORDER BY number DESC LIMIT 1), last_step) WHERE id=:run",
                {"run": run},
            )

    # --- stories --------------------------------------------------------------------------------

    def story(self, run: int) -> Story | None:
        """The rows that are there; None where there are none yet."""
        fields = ", ".join(RunRow._fields)
        row = self._conn.execute(f"SELECT {fields} FROM runs WHERE id=?", (run,)).fetchone()
        if row is None or not row[0]:
            return None
        parts = [
            [kind(*found) for found in self._conn.execute(_select(table, kind), (run,))]
            for table, kind in _PARTS
        ]
        return Story(RunRow(*row), *parts)

    def tell(self, run: int, old: Story | None, new: Story, born: str, mark: str) -> None:
        """Bring a run's rows to what they are now; only those that differ are written."""
        conn = self._conn
        fields = ", ".join(f'"{name}"=?' for name in RunRow._fields)
        conn.execute(
            f"UPDATE runs SET {fields}, born=?, mark=?, problem='', settled=1 WHERE id=?",
            (*new.run, born, mark, run),
        )
        parts: tuple[list[Any], ...] = new[1:]
        was: tuple[list[Any], ...] = old[1:] if old else ([], [], [])
        for (table, kind), before, now in zip(_PARTS, was, parts, strict=True):
            keys = _KEYS[table]
            known = {tuple(row[:keys]): row for row in before}
            changed = [row for row in now if known.pop(tuple(row[:keys]), None) != row]
            conn.executemany(
                _insert(table, kind, "REPLACE", "run"),
                [(run, *row) for row in changed],
            )
            where = " AND ".join(f'"{name}"=?' for name in ("run", *kind._fields[:keys]))
            conn.executemany(f"DELETE FROM {table} WHERE {where}", [(run, *key) for key in known])

    def set_state(self, run: int, state: str, problem: str) -> None:
        """Of a run that cannot be told, or is not there."""
        self._conn.execute(
            "UPDATE runs SET state=?, problem=?, settled=1 WHERE id=?", (state, problem, run)
        )


_PARTS: tuple[tuple[str, Any], ...] = (
    ("attempts", AttemptRow),
    ("snapshots", SnapshotRow),
    ("recoveries", RecoveryRow),
)
_KEYS = {"attempts": 2, "snapshots": 1, "recoveries": 1}


def _insert(table: str, row: Any, conflict: str = "ABORT", *before: str) -> str:
    names: Sequence[str] = (*before, *row._fields)
    fields = ", ".join(f'"{name}"' for name in names)
    holes = ", ".join("?" * len(names))
    return f"INSERT OR {conflict} INTO {table} ({fields}) VALUES ({holes})"


def _select(table: str, row: Any) -> str:
    fields: Iterable[str] = (f'"{name}"' for name in row._fields)
    return f"SELECT {', '.join(fields)} FROM {table} WHERE run=?"
