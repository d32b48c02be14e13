"""Questions to the read model, for pages and metrics: through connections that cannot write.

Owns the SQL of reading. A read model that is not there yet, or is being made anew, has no rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from walrecover_daemon.curves import Part, Point

Row = dict[str, Any]
FEW_STEPS = 4000
"""Up to so many steps each is a point; above that a bucket of them is."""

_FAILED = ("done", "stopped", "preempted", "fenced", "unusable", "finished", "")


class Asking:
    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(
            sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        ) as conn:
            conn.row_factory = sqlite3.Row
            conn.execute("PRAGMA query_only=ON")
            yield conn

    def ask(self, sql: str, *values: Any) -> list[Row]:
        try:
            with self._open() as conn:
                return [dict(row) for row in conn.execute(sql, values)]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "unable to open" in str(error):
                return []
            raise

    def count(self) -> int:
        """How many runs there are."""
        found = self.ask("SELECT count(*) AS n FROM runs WHERE state != ''")
        return found[0]["n"] if found else 0

    def runs(self, most: int = -1) -> list[Row]:
        """Runs, those that are alive first, then the newest; by default all."""
        return self.ask(
            "SELECT *, (SELECT sum(last_step - superseded_from + 1) FROM attempts a"
            " WHERE a.run=runs.id) AS lost"
            " FROM runs WHERE state != '' ORDER BY state != 'running', latest DESC, name"
            " LIMIT ?",
            most,
        )

    def run(self, name: str, number: int | None = None) -> tuple[Row | None, list[Row]]:
        """The run of this name, and all that have it; the newest unless a number chooses."""
        found = self.ask("SELECT * FROM runs WHERE name=? ORDER BY latest DESC", name)
        chosen = [row for row in found if number is None or row["id"] == number]
        return (chosen[0] if chosen else None), found

    def attempts(self, run: int) -> list[Row]:
        return self.ask("SELECT * FROM attempts WHERE run=? ORDER BY number", run)

    def recoveries(self, run: int, most: int = 12) -> list[Row]:
        """The newest of them, newest first."""
        return self.ask(
            "SELECT * FROM recoveries WHERE run=? ORDER BY attempt DESC LIMIT ?", run, most
        )

    def snapshots(self, run: int, most: int = 200) -> list[Row]:
        return self.ask(
            "SELECT * FROM snapshots WHERE run=? ORDER BY entry DESC LIMIT ?", run, most
        )

    def events(self, run: int, most: int = 100) -> list[Row]:
        return self.ask(
            "SELECT e.*, s.attempt, s.writer FROM events e JOIN streams s ON s.id = e.stream"
            " WHERE e.run=? ORDER BY e.at DESC, e.lsn DESC LIMIT ?",
            run,
            most,
        )

    def problems(self, run: int) -> list[Row]:
        return self.ask("SELECT * FROM streams WHERE run=? AND kind != ''", run)

    def parts(self, run: int) -> list[Part]:
        """What each attempt made, as its lowest rank tells it."""
        with self._open() as conn:
            found = conn.execute(
                "SELECT a.*, s.id AS stream, min(CAST(substr(s.writer, 6) AS INTEGER)) AS rank"
                " FROM attempts a JOIN streams s ON s.run=a.run AND s.attempt=a.number"
                " AND s.nonce=a.nonce AND s.writer GLOB 'rank-*' WHERE a.run=?"
                " GROUP BY a.number ORDER BY a.number",
                (run,),
            ).fetchall()
            steps = sum((row["last_step"] or 0) - (row["first_step"] or 0) for row in found)
            return [_part(conn, row, every=steps <= FEW_STEPS) for row in found]

    def totals(self) -> Row:
        """Of all streams together."""
        (found,) = self.ask(
            "SELECT coalesce(sum(kind != ''), 0) AS damaged, count(*) AS streams FROM streams"
        ) or [{"damaged": 0, "streams": 0}]
        return found


def _part(conn: sqlite3.Connection, row: sqlite3.Row, *, every: bool) -> Part:
    if every:
        sql = "SELECT step, loss, loss, loss, 1 FROM steps WHERE stream=? ORDER BY step"
    else:
        sql = "SELECT last, low, high, mean, n FROM curves WHERE stream=? ORDER BY bucket"
    points = [Point(*found) for found in conn.execute(sql, (row["stream"],))]
    crashed = "" if row["cause"] in _FAILED else row["cause"]
    return Part(row["number"], points, row["superseded_from"], crashed, row["last_step"])
