"""`walrecover log`: the events of a run, all streams together."""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import write_json_line
from walrecover.entries import attempt_label
from walrecover.errors import WalrecoverError
from walrecover.events import Event, Unknown
from walrecover.journal import Cursor, Reader, StreamId, examine_all, find_streams
from walrecover.rundir import RunDir

FOLLOW_SECONDS = 0.2
WHOLE = ("evidence", "reason")
"""Fields that are sentences for people, and never cut."""

Line = tuple[float, str, int, "Event | Unknown"]


@click.command("log", help="The events of a run, of all its writers, in order of their time.")
@run_argument
@directory
@journal_dir
@click.option("-f", "--follow", is_flag=True, help="Go on as new events come.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of this type.")
@as_json
def command(
    run: str | None,
    directory: str | None,
    journal_dir: str | None,
    follow: bool,
    types: tuple[str, ...],
    as_json: bool,
) -> int:
    found = resolve(run, directory, journal_dir)
    cursors: dict[StreamId, Cursor] = {}
    while True:
        for _, label, lsn, event in heapq.merge(*_new(found, cursors), key=lambda line: line[:3]):
            _print(label, lsn, event, types, as_json)
        sys.stdout.flush()
        if not follow:
            return 0
        time.sleep(FOLLOW_SECONDS)


def _new(run: RunDir, cursors: dict[StreamId, Cursor]) -> list[Iterator[Line]]:
    """What each stream holds beyond its cursor, which moves on as it is read."""
    streams = find_streams(run.journal)
    reports = examine_all(streams)
    found = []
    for stream, path in streams:
        report = reports[stream]
        if report.problem and stream not in cursors:
            print(f"walrecover: {stream.writer}: {report.problem}", file=sys.stderr)
        if report.readable:
            found.append(_lines(stream, path, report.last, cursors))
    return found


def _lines(
    stream: StreamId, path: Path, last: int, cursors: dict[StreamId, Cursor]
) -> Iterator[Line]:
    label = f"{attempt_label(stream.attempt, stream.nonce)}/{stream.writer}"
    try:
        with Reader(path) as reader:
            cursor = cursors.get(stream)
            for lsn, event in reader.read(cursor, upto=last):
                at = event.at if not isinstance(event, Unknown) else 0.0
                yield at, label, lsn, event
            if last:
                cursors[stream] = reader.cursor_at(last)
    except (WalrecoverError, OSError) as error:
        print(f"walrecover: {label}: {error}", file=sys.stderr)


def _print(
    label: str, lsn: int, event: Event | Unknown, types: tuple[str, ...], as_json: bool
) -> None:
    kind = event.type if isinstance(event, Unknown) else type(event).__name__
    if types and kind not in types:
        return
    fields: dict[str, Any]
    if isinstance(event, Unknown):
        fields = dict(event.fields)
    else:
        fields = msgspec.to_builtins(event, builtin_types=(bytes,))
    fields.pop("type", None)
    fields = {k: v.hex() if isinstance(v, bytes) else v for k, v in _plain(fields).items()}
    if as_json:
        write_json_line({"stream": label, "lsn": lsn, "type": kind, **fields})
        return
    at = fields.pop("at", 0.0)
    moment = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
    text = " ".join(
        f"{name}={value if name in WHOLE else _short(value)}" for name, value in fields.items()
    )
    click.echo(f"{moment} {label:24} {lsn:>6} {kind} {text}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.hex() if isinstance(value, bytes) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "…"
