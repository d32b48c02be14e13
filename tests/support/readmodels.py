"""Runs written to disk as a test draws them, and what a read model of them must hold.

`expected` says it another way than the daemon does: it reads all of every stream, and folds once.
"""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from walrecover import entries as model
from walrecover import events as ev
from walrecover import recovery
from walrecover.cli.views import run_row
from walrecover.entries import Entry
from walrecover.journal import Journal, Reader, find_streams
from walrecover.processes import identity, is_alive
from walrecover.rundir import RunDir
from walrecover.state import StreamKey
from walrecover_daemon.finding import Finder, Stirred
from walrecover_daemon.following import Follower
from walrecover_daemon.reading import Readers
from walrecover_daemon.readmodel import ReadModel
from walrecover_daemon.telling import note_captures, story

Dump = dict[str, list[dict[str, Any]]]
DAEMON = [sys.executable, "-m", "walrecover_daemon"]
NO_STREAM = StreamKey(0, "", "")


def write_entries(run: RunDir, entries: Iterable[Entry]) -> None:
    run.create()
    for number, entry in enumerate(entries, start=1):
        (run.sequence / f"{number:08d}.json").write_bytes(model.encode(entry))


def open_stream(run: RunDir, key: StreamKey) -> Journal:
    first = ev.AttemptBegun(
        at=1.0, run=run.name, attempt=key.attempt, nonce=key.nonce, writer=key.writer
    )
    path = run.stream(*key)
    return Journal.create(path, attempt=key.attempt, first=first, map_bytes=1 << 20)


# --- following in this process --------------------------------------------------------------------


def opened(root: Path, path: Path) -> tuple[ReadModel, Finder, Follower]:
    readmodel, finder = ReadModel(path, "test"), Finder([root], None)
    follower = Follower(readmodel, finder, Readers(lambda path: None))
    follow_all(follower, follower.recall())
    return readmodel, finder, follower


def catch_up(finder: Finder, follower: Follower, settle: bool = True) -> None:
    places = finder.places()
    follow_all(follower, [*finder.changed(places), *follower.gone(places)])
    if settle:
        follower.settle(everything=True)


def follow_all(follower: Follower, stirred: list[Stirred]) -> None:
    while stirred:
        stirred = follower.follow(stirred)


def follow_once(root: Path, path: Path) -> None:
    readmodel, finder, follower = opened(root, path)
    try:
        catch_up(finder, follower)
        follower.close()
    finally:
        readmodel.close()


# --- what a read model holds ----------------------------------------------------------------------


def rows(path: Path, sql: str, *values: Any) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as conn:
        conn.row_factory = sqlite3.Row
        return [dict(row) for row in conn.execute(sql, values)]


def count(path: Path) -> int:
    """Events that have a row; 0 where there is no read model yet."""
    try:
        found = rows(path, "SELECT (SELECT count(*) FROM steps) + (SELECT count(*) FROM events) n")
    except sqlite3.OperationalError:
        return 0
    return int(found[0]["n"])


def dump(path: Path) -> Dump:
    """All tables, without the numbers that only this read model gives."""
    run = "SELECT root || '/' || name FROM runs r WHERE r.id=t.run"
    stream = (
        "SELECT (SELECT name FROM runs r WHERE r.id=s.run) || '/a' || attempt || '-' || nonce ||"
        " '/' || writer FROM streams s WHERE s.id=t.stream"
    )
    found = {"runs": rows(path, "SELECT *, root || '/' || name AS of FROM runs")}
    for table in ("attempts", "snapshots", "recoveries", "streams"):
        found[table] = rows(path, f"SELECT *, ({run}) AS of FROM {table} t")
    for table in ("steps", "curves", "events"):
        found[table] = rows(path, f"SELECT *, ({stream}) AS of FROM {table} t")
    own = {"id", "run", "stream", "mark", "settled", "folded", "folded_lsn", "folded_chain"}
    return {
        table: sorted(({k: v for k, v in row.items() if k not in own} for row in each), key=repr)
        for table, each in found.items()
    }


# --- what it must hold ----------------------------------------------------------------------------


def expected(run: RunDir) -> Dump:
    """What a read model must say of a run whose journals are whole."""
    state = recovery.fold_run(run)
    streams = {StreamKey(*stream): read(path) for stream, path in find_streams(run.journal)}
    captures: dict[StreamKey, dict[str, tuple[int, float]]] = {}
    for key, pairs in streams.items():
        note_captures(captures.setdefault(key, {}), key, pairs)
    told = story(state, captures, is_alive, identity())
    of = f"{run.root}/{run.name}"
    found: Dump = {
        "runs": [{"of": of, **told.run._asdict()}],
        "attempts": [{"of": of, **row._asdict()} for row in told.attempts],
        "snapshots": [{"of": of, **row._asdict()} for row in told.snapshots],
        "recoveries": [{"of": of, **row._asdict()} for row in told.recoveries],
        "steps": [],
        "events": [],
    }
    for key, pairs in streams.items():
        name = f"{run.name}/{model.attempt_label(key.attempt, key.nonce)}/{key.writer}"
        found["steps"] += [{"of": name, **row} for row in steps_of(pairs).values()]
        found["events"] += [{"of": name, "lsn": lsn, **row} for lsn, row in others_of(pairs)]
    return found


def agrees(path: Path, run: RunDir) -> None:
    """The read model says of this run what its journals do."""
    found, wanted = dump(path), expected(run)
    of = f"{run.root}/{run.name}"
    for table, each in wanted.items():
        mine = [
            row for row in found[table] if f"{row['of']}/".startswith((f"{of}/", f"{run.name}/"))
        ]
        fields = each[0].keys() if each else ()
        cut = [{field: row[field] for field in fields} for row in mine]
        assert sorted(cut, key=repr) == sorted(
            ({k: _as_sqlite(v) for k, v in row.items()} for row in each), key=repr
        ), table
        assert len(mine) == len(each), table
    shown = run_row(run.name, recovery.fold_run(run))
    (mine,) = (row for row in found["runs"] if row["of"] == of)
    same = ("state", "last_step", "attempts", "recovery_point", "committed_at")
    assert {k: mine[k] for k in same} == {k: shown[k] for k in same}
    last = {k: mine[k] for k in ("cause", "evidence", "decision", "reason")}
    assert last == shown["last_end"]


def _as_sqlite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def read(path: Path) -> list[tuple[int, ev.Event | ev.Unknown]]:
    with Reader(path) as reader:
        return list(reader.read())


def steps_of(pairs: Iterable[tuple[int, Any]]) -> dict[int, dict[str, Any]]:
    """The later of a step that is there twice; with what arrived for it afterwards."""
    found: dict[int, tuple[int, Any, dict[str, float]]] = {}
    for lsn, event in pairs:
        if isinstance(event, ev.StepCompleted):
            found[event.step] = lsn, event, dict(event.scalars)
        elif isinstance(event, ev.ScalarsArrived) and event.step in found:
            found[event.step][2].update(event.scalars)
    return {
        step: {
            "step": step,
            "lsn": lsn,
            "at": event.at,
            "epoch": event.epoch,
            "loss": _loss(scalars),
            "scalars": _scalars(scalars),
        }
        for step, (lsn, event, scalars) in found.items()
    }


def _loss(scalars: Mapping[str, float]) -> float | None:
    named = ["loss"] * ("loss" in scalars) + [n for n in scalars if "loss" in n.lower()]
    chosen = next(iter([*named, *scalars]), None)
    value = scalars[chosen] if chosen else math.nan
    return value if math.isfinite(value) else None


def _scalars(scalars: Mapping[str, float]) -> str | None:
    if not scalars or (list(scalars) == ["loss"] and math.isfinite(scalars["loss"])):
        return None
    return msgspec.json.encode(scalars).decode()


def others_of(pairs: Iterable[tuple[int, Any]]) -> list[tuple[int, dict[str, Any]]]:
    kept = [
        (lsn, event)
        for lsn, event in pairs
        if not isinstance(event, ev.StepCompleted | ev.ScalarsArrived)
    ]
    return [
        (lsn, {"type": event.type if isinstance(event, ev.Unknown) else type(event).__name__})
        for lsn, event in kept
    ]


# --- the daemon as a process ----------------------------------------------------------------------


def daemon(*words: str | Path, **more: Any) -> subprocess.Popen[str]:
    """A daemon, its page on any port: `address` reads which."""
    return subprocess.Popen(
        [*DAEMON, *map(str, words), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def run_daemon(*words: str | Path) -> tuple[int, str, str]:
    done = subprocess.run([*DAEMON, *map(str, words)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def ended(process: subprocess.Popen[str], stop: Callable[[], object] | None = None) -> str:
    """What it said until it ended."""
    if stop:
        stop()
    _, said = process.communicate(timeout=60)
    return said


def spec(name: str) -> str:
    return (Path(__file__).parents[2] / "specs" / name).read_text()
