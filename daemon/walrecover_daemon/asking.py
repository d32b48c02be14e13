"""Questions to the read model, for pages and metrics: through connections that cannot write.

Owns the SQL of reading. A read model that is not there yet, or is being made anew, has no rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from walrecover.goodput import KINDS
from walrecover_daemon import book
from walrecover_daemon.curves import Part, Point

Row = dict[str, Any]
FEW_STEPS = 4000
"""Up to so many steps each is a point; above that a bucket of them is."""

_LIVE = "FROM snapshots c WHERE c.run=r.id AND c.status IN ('verified', 'committed')"

_ROT = (
    "(SELECT g.problem FROM snapshots c JOIN guard.readings g ON g.directory=runs.root"
    " AND g.run=runs.name AND g.manifest=c.manifest WHERE c.run=runs.id AND c.entry="
    f"(SELECT max(c.entry) {_LIVE.replace('r.id', 'runs.id')}))"
)
"""What was wrong with a run's recovery point when it was read back; NULL: it was not."""

_FAILED = ("done", "stopped", "preempted", "fenced", "unusable", "finished", "")


class Asking:
    def __init__(self, path: Path) -> None:
        self._path, self._guard = path, book.path_of(path)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(
            sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        ) as conn:
            conn.row_factory = sqlite3.Row
            book.attach(conn, self._guard)
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
            f"SELECT *, {_ROT} AS rot FROM runs WHERE state != ''"
            " ORDER BY state != 'running', latest DESC, name"
            " LIMIT ?",
            most,
        )

    def figures(self) -> list[Row]:
        """Of every run what can be counted, and no more: there may be very many."""
        kinds = ", ".join(KINDS)
        return self.ask(
            f"SELECT root, name, state, last_step, goodput, committed_at, {kinds},"
            " coalesce((SELECT sum(last_step - superseded_from + 1) FROM attempts a"
            " WHERE a.run=runs.id), 0) AS lost FROM runs WHERE state != ''"
        )

    def run(self, name: str, number: int | None = None) -> tuple[Row | None, list[Row]]:
        """The run of this name, and all that have it; the newest unless a number chooses."""
        sql = f"SELECT *, {_ROT} AS rot FROM runs WHERE name=? ORDER BY latest DESC"
        found = self.ask(sql, name)
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
        """What did not read back has that for its status and reason."""
        found = self.ask(
            "SELECT s.*, g.at AS read_at, g.problem, g.damaged FROM snapshots s"
            " JOIN runs r ON r.id=s.run LEFT JOIN guard.readings g ON g.directory=r.root"
            " AND g.run=r.name AND g.manifest=s.manifest"
            " WHERE s.run=? ORDER BY s.entry DESC LIMIT ?",
            run,
            most,
        )
        for row in found:
            if row["problem"] and row["status"] != "retired":
                row["status"] = "rotten" if row["damaged"] else "unreadable"
                row["reason"] = row["problem"]
        return found

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

    # --- what is guarded ------------------------------------------------------------------------

    def alerts(self, run: tuple[str, str] | None = None, most: int = 50) -> list[Row]:
        """Of a run (directory, name), or all: what lasts first, then the newest."""
        where, values = ("directory=? AND run=?", run) if run else ("1", ())
        return self.ask(
            f"SELECT * FROM guard.alerts WHERE {where} ORDER BY"
            " (state='firing' AND kind NOT IN ('failed', 'hang')) DESC, changed DESC LIMIT ?",
            *values,
            most,
        )

    def upkeep(self, run: tuple[str, str]) -> list[Row]:
        return self.ask(
            "SELECT * FROM guard.upkeep WHERE directory=? AND run=? ORDER BY what", *run
        )

    def newest_attempts(self) -> list[Row]:
        """Every run that is there, with its newest attempt."""
        return self.ask(
            "SELECT r.id, root, name, state, holder, latest, last_step AS step, committed_at,"
            " recovery_point, a.number AS attempt, a.nonce, a.began, a.ended AS at, a.cause,"
            " a.evidence, a.decision, a.reason FROM runs r LEFT JOIN (SELECT run, number, nonce,"
            " began, ended, cause, evidence, decision, reason, max(number) FROM attempts"
            " GROUP BY run) a ON a.run=r.id WHERE state NOT IN ('', 'gone')"
        )

    def ids(self, places: Iterable[tuple[str, str]]) -> frozenset[int]:
        """Of runs, by directory and name."""
        found = {
            (row["root"], row["name"]): row["id"]
            for row in self.ask("SELECT id, root, name FROM runs")
        }
        return frozenset(found[place] for place in places if place in found)

    def ends(self, since: float) -> list[Row]:
        """Attempts that have ended since."""
        return self.ask(
            "SELECT root, name, a.number AS attempt, a.nonce, a.cause, a.evidence, a.decision,"
            " a.reason, coalesce(a.ended, a.began) AS at, a.last_step AS step"
            " FROM attempts a JOIN runs r ON r.id=a.run"
            " WHERE a.cause != '' AND coalesce(a.ended, a.began) > ? AND state != 'gone'",
            since,
        )

    def hangs(self, since: float) -> list[Row]:
        return self.ask(
            "SELECT root, name, s.attempt, s.nonce, e.lsn, e.at, e.step,"
            " body->>'phase' AS phase, body->>'seconds' AS seconds, body->>'limit' AS \"limit\","
            " body->>'rank' AS rank, body->>'reason' AS reason"
            " FROM events e JOIN streams s ON s.id=e.stream JOIN runs r ON r.id=e.run"
            " WHERE e.type='HangDetected' AND e.at > ? AND state != 'gone'",
            since,
        )

    def rotten(self) -> list[Row]:
        """Snapshots that did not read back. `newest`: recovery would begin with it; `fallback`: the
        step of the newest one of which nothing bad is known."""
        return self.ask(
            "SELECT r.root, r.name, s.attempt, s.step, s.manifest, g.problem, g.damaged,"
            f" s.entry = (SELECT max(c.entry) {_LIVE}) AS newest,"
            f" (SELECT c.step {_LIVE} AND NOT EXISTS (SELECT 1 FROM guard.readings h"
            " WHERE h.directory=r.root AND h.run=r.name AND h.manifest=c.manifest"
            " AND h.problem != '') ORDER BY c.entry DESC LIMIT 1) AS fallback"
            " FROM guard.readings g JOIN runs r ON r.root=g.directory AND r.name=g.run"
            " JOIN snapshots s ON s.run=r.id AND s.manifest=g.manifest"
            " WHERE g.problem != '' AND s.status != 'retired' AND r.state != 'gone'"
        )

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
