"""What people are told, and why: from rows, readings, disks and the time to alerts.

Pure. Owns when an alert fires, is said again, and is over; who is told, and how, is not its matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from walrecover.causes import CAUSES
from walrecover.cli.output import seconds
from walrecover.wording import redacted_text, shortened

OLDEST_SECONDS = 7 * 86400.0
"""What happened longer ago is not told any more."""

KINDS = ("failed", "stopped", "hang", "rotten", "unreadable", "disk", "stale")
LASTING = ("stopped", "rotten", "unreadable", "disk", "stale")
"""Kinds that are over at some time; the others have happened."""

EASED = 1.2
"""So much more than its limit is free before a disk is not full any more."""

Row = Mapping[str, Any]
Key = tuple[str, str, str, str]


class Limits(NamedTuple):
    """`no_snapshot_for`: seconds, None for no limit. `disk_free`: a share."""

    no_snapshot_for: float | None = 3600.0
    disk_free: float = 0.05


class Disk(NamedTuple):
    """A file system below a directory; bytes."""

    path: str
    free: int
    total: int


class Seen(NamedTuple):
    """What there is. `runs`, `ends` (attempts that ended), `hangs` (events), `rotten` (snapshots
    that did not read back): rows of `asking`. `waited`: for how many seconds each run's newest
    commit, by the run's id, has been the same on our own clock."""

    runs: Sequence[Row]
    ends: Sequence[Row]
    hangs: Sequence[Row]
    rotten: Sequence[Row]
    disks: Sequence[Disk]
    waited: Mapping[int, float]


class Alert(NamedTuple):
    """`print`: what it must differ in to be said again. `at`: since when, Unix time; None: since
    it is seen."""

    kind: str
    directory: str
    run: str
    subject: str
    print: str
    reason: str
    at: float | None = None
    attempt: int | None = None
    step: int | None = None

    @property
    def key(self) -> Key:
        return self.kind, self.directory, self.run, self.subject


class Said(NamedTuple):
    """What was last said of an alert."""

    print: str
    state: Literal["firing", "resolved"]


class Change(NamedTuple):
    alert: Alert
    state: Literal["firing", "resolved"]


def decide(seen: Seen, limits: Limits, firing: frozenset[Key] = frozenset()) -> list[Alert]:
    """All that there is to tell, whether it was told or not. `firing`: what is being told."""
    found = [
        *(_failed(row) for row in seen.ends),
        *(_stopped(row) for row in seen.runs),
        *(_hang(row) for row in seen.hangs),
        *(_rotten(row) for row in seen.rotten),
        *(_disk(disk, limits, firing) for disk in seen.disks),
        *(_stale(row, limits, seen.waited) for row in seen.runs),
    ]
    return [alert for alert in found if alert is not None]


def changes(
    told: Mapping[Key, Said], found: Iterable[Alert], *, now: float, since: float
) -> list[Change]:
    """What is to be said now. `since`: nothing older was ever told."""
    news = []
    there = {alert.key: alert for alert in found}
    over = told.keys() - there.keys()
    for key, alert in there.items():
        before = told.get(key)
        if before is None or (before.state == "resolved" and alert.kind in LASTING):
            at = now if alert.at is None else alert.at
            if at >= max(since, now - OLDEST_SECONDS):
                news.append(Change(alert, "firing"))
        elif before.state == "firing" and before.print != alert.print:
            news.append(Change(alert, "firing"))
    for key in sorted(over):
        if key[0] in LASTING and told[key].state == "firing":
            alert = Alert(*key, print=told[key].print, reason=_over(key), at=now)
            news.append(Change(alert, "resolved"))
    return news


def text_of(row: Row) -> str:
    """An alert, as it is kept, in one line."""
    over = "" if row["state"] == "firing" else "over: "
    return f"{row['run'] or row['directory']}: {over}{row['kind']}: {row['reason']}"


# --- the kinds ------------------------------------------------------------------------------------


def _failed(row: Row) -> Alert | None:
    """An attempt is told once it is known what was decided; that the run stops is another kind."""
    known = row["decision"] not in ("", "stop")
    if not known or row["cause"] not in CAUSES or row["cause"] == "preempted":
        return None
    return _of("failed", row, _label(row), _label(row), _end(row), row["at"])


def _stopped(row: Row) -> Alert | None:
    if row["state"] != "ended" or row["cause"] in ("done", "stopped"):
        return None
    heard = row["at"] or max(row["latest"] or 0.0, row["began"] or 0.0)
    if row["decision"] == "stop":
        reason = _end(row)
    else:
        reason = f"{row['holder']} is gone, and nobody goes on with the run"
        if row["cause"]:
            reason += f": {_clean(_joined(row, 'cause', 'evidence'))}"
    return _of("stopped", row, "", _label(row), reason, heard)


def _hang(row: Row) -> Alert:
    who = "it" if row["rank"] is None else f"rank {row['rank']}"
    reason = (
        f"{who} stands still in {row['phase']} for {seconds(row['seconds'])}, and may for "
        f"{seconds(row['limit'])}"
    )
    if row["reason"]:
        reason += f": {_clean(row['reason'])}"
    label = f"{_label(row)}-{row['lsn']}"
    return _of("hang", row, label, label, reason, row["at"])


def _rotten(row: Row) -> Alert:
    kind, what = ("rotten", "is damaged") if row["damaged"] else ("unreadable", "cannot be read")
    which = "the recovery point" if row["newest"] else "a snapshot"
    if row["fallback"] is None:
        then = "there is no whole one to recover from"
    else:
        then = f"a recovery goes on from step {row['fallback']}"
    reason = f"{which} of step {row['step']} {what} ({_clean(row['problem'])}); {then}"
    return _of(kind, row, row["manifest"], row["problem"], reason, None)


def _disk(disk: Disk, limits: Limits, firing: frozenset[Key]) -> Alert | None:
    share = disk.free / disk.total if disk.total else 1.0
    reason = f"{share:.1%} of its file system is free, and snapshots need space"
    alert = Alert("disk", disk.path, "", "", "low", reason)
    limit = limits.disk_free * (EASED if alert.key in firing else 1.0)
    return alert if share < limit else None


def _stale(row: Row, limits: Limits, waited: Mapping[int, float]) -> Alert | None:
    limit = limits.no_snapshot_for
    if limit is None or row["state"] != "running":
        return None
    newest = max(row["committed_at"] or 0.0, row["began"] or 0.0)
    age = max((row["latest"] or 0.0) - newest, waited.get(row["id"], 0.0))
    if age <= limit:
        return None
    what = "no snapshot" if row["recovery_point"] is None else "no newer snapshot"
    return _of("stale", row, "", str(row["committed_at"]), f"{what} for {seconds(age)}", None)


def _of(kind: str, row: Row, subject: str, mark: str, reason: str, at: float | None) -> Alert:
    place = row["root"], row["name"]
    return Alert(kind, *place, subject, mark, reason, at, row["attempt"], row["step"])


def _label(row: Row) -> str:
    return f"{row['attempt']}-{row['nonce']}"


def _end(row: Row) -> str:
    ended, decided = _joined(row, "cause", "evidence"), _joined(row, "decision", "reason")
    return f"attempt {row['attempt']} ended: {_clean(ended)}; decided: {_clean(decided)}"


def _joined(row: Row, *columns: str) -> str:
    return ": ".join(filter(None, (row[name] for name in columns)))


def _over(key: Key) -> str:
    return {
        "stopped": "it goes on, or is finished",
        "rotten": "it reads back whole, or is retired",
        "unreadable": "it reads back whole, or is retired",
        "disk": "there is space again",
        "stale": "there is a snapshot, or it does not run any more",
    }[key[0]]


def _clean(text: str) -> str:
    return redacted_text(shortened(text))
