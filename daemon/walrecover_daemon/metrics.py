"""What Prometheus is told: read from the read model each time it asks.

Owns the names of the metrics (specs/19-daemon.md has them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from walrecover.goodput import KINDS
from walrecover_daemon.asking import Asking
from walrecover_daemon.keeper import Heard

RUN = ("directory", "run")


class Told(Collector):
    def __init__(self, asking: Asking, heard: Heard) -> None:
        self._asking, self._heard = asking, heard

    def collect(self) -> Iterator[Metric]:
        runs = self._asking.figures()
        yield from _of_runs(runs)
        yield from self._of_snapshots()
        yield from self._of_restarts()
        yield from self._of_readings()
        yield from self._of_upkeep()
        yield from self._of_alerts()
        progress = self._heard.progress
        for name, text, value in (
            ("streams_damaged", "Streams with a problem.", self._asking.totals()["damaged"]),
            ("follower_events", "Events that this follower has read.", progress.events),
            (
                "follower_restarts",
                "Times that the follower was started anew.",
                self._heard.restarts,
            ),
            ("follower_waiting", "Runs that are still to be read.", progress.waiting),
        ):
            yield GaugeMetricFamily(f"walrecover_{name}", text, value=value)

    def _of_snapshots(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "walrecover_run_snapshot_bytes", "Bytes of the newest snapshot.", labels=RUN
        )
        sql = (
            "SELECT root, runs.name, bytes, max(entry) FROM snapshots JOIN runs ON runs.id=run"
            " GROUP BY run"
        )
        for row in self._asking.ask(sql):
            if row["bytes"] is not None:
                family.add_metric([row["root"], row["name"]], row["bytes"])
        yield family

    def _of_restarts(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "walrecover_run_restarts", "Attempts that followed another.", labels=(*RUN, "cause")
        )
        sql = (
            "SELECT root, name, r.cause, count(*) AS n FROM recoveries r JOIN runs ON runs.id=run"
            " GROUP BY run, r.cause"
        )
        for row in self._asking.ask(sql):
            family.add_metric([row["root"], row["name"], row["cause"] or "unknown"], row["n"])
        yield family

    def _of_readings(self) -> Iterator[Metric]:
        """What was read back of the snapshots that are not retired."""
        read = self._asking.ask(
            "SELECT q.root, q.name, CASE WHEN g.problem='' THEN 'whole' WHEN g.damaged THEN"
            " 'rotten' ELSE 'unreadable' END AS result, count(*) AS n, min(g.at) AS oldest"
            f" FROM {_READ} WHERE s.status != 'retired' GROUP BY q.id, result"
        )
        family = _gauge("run_snapshots_read", "Snapshots by how they read back.", "result")
        for row in read:
            family.add_metric([row["root"], row["name"], row["result"]], row["n"])
        yield family
        family = _gauge("run_scrub_timestamp_seconds", "The reading that is longest ago.")
        oldest: dict[tuple[str, str], float] = {}
        for row in read:
            place = row["root"], row["name"]
            oldest[place] = min(row["oldest"], oldest.get(place, row["oldest"]))
        for place, at in oldest.items():
            family.add_metric(place, at)
        yield family
        family = _gauge("run_recovery_point_whole", "1: it read back whole, 0: it did not.")
        for row in self._asking.ask(
            f"SELECT q.root, q.name, g.problem FROM {_READ} WHERE s.entry=(SELECT max(c.entry)"
            " FROM snapshots c WHERE c.run=q.id AND c.status IN ('verified', 'committed'))"
        ):
            family.add_metric([row["root"], row["name"]], int(row["problem"] == ""))
        yield family

    def _of_upkeep(self) -> Iterator[Metric]:
        done = self._asking.ask("SELECT * FROM guard.upkeep")
        for name, text, what in (
            ("run_archived_entries", "Entries that the vault has.", "archive"),
            ("run_retired_snapshots", "Snapshots retired by rules.", "retention"),
        ):
            family = _gauge(name, text)
            for row in done:
                if row["what"] == what:
                    family.add_metric([row["directory"], row["run"]], row["amount"])
            yield family
        family = _gauge("run_upkeep_problem", "1: it could not be done.", "what")
        for row in done:
            place = row["directory"], row["run"]
            family.add_metric([*place, row["what"]], int(row["problem"] != ""))
        yield family

    def _of_alerts(self) -> Iterator[Metric]:
        firing = self._asking.ask(
            "SELECT directory, run, kind, count(*) AS n FROM guard.alerts WHERE state='firing'"
            " GROUP BY directory, run, kind"
        )
        family = _gauge("alerts", "Alerts of the last days, and those that last.", "kind")
        for row in firing:
            family.add_metric([row["directory"], row["run"], row["kind"]], row["n"])
        yield family
        waiting = self._asking.ask(
            "SELECT count(*) AS n FROM guard.alerts WHERE delivery='waiting'"
        )
        family = GaugeMetricFamily("walrecover_alerts_waiting", "Alerts not delivered yet.")
        family.add_metric([], waiting[0]["n"] if waiting else 0)
        yield family


_READ = (
    "snapshots s JOIN runs q ON q.id=s.run JOIN guard.readings g ON g.directory=q.root"
    " AND g.run=q.name AND g.manifest=s.manifest"
)


def _gauge(name: str, text: str, *more: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"walrecover_{name}", text, labels=(*RUN, *more))


def _of_runs(runs: list[dict[str, Any]]) -> Iterator[Metric]:
    gauges: tuple[tuple[str, str, str], ...] = (
        ("step", "last_step", "The last step that was completed."),
        ("goodput_ratio", "goodput", "Productive time over wall time."),
        ("snapshot_timestamp_seconds", "committed_at", "When the newest snapshot was committed."),
        ("lost_steps", "lost", "Steps that were completed and do not count any more."),
    )
    for name, column, text in gauges:
        family = GaugeMetricFamily(f"walrecover_run_{name}", text, labels=RUN)
        for row in runs:
            if row[column] is not None:
                family.add_metric([row["root"], row["name"]], row[column])
        yield family
    states = GaugeMetricFamily("walrecover_run_state", "1 for its state.", labels=(*RUN, "state"))
    spent = GaugeMetricFamily(
        "walrecover_run_seconds", "Where the wall time went.", labels=(*RUN, "kind")
    )
    for row in runs:
        states.add_metric([row["root"], row["name"], row["state"]], 1)
        for kind in KINDS:
            if row[kind] is not None:
                spent.add_metric([row["root"], row["name"], kind], row[kind])
    yield states
    yield spent


def exposition(asking: Asking, heard: Heard) -> bytes:
    """What /metrics answers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Told(asking, heard))
    found: bytes = generate_latest(registry)
    return found
