"""What comes with the daemon for others to run it by: systemd's protocol, Grafana's dashboard."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support import readmodels
from tests.support.protocol import Launch
from tests.support.waiting import wait_until
from tests.support.webhooks import guard_file
from walrecover import events as ev
from walrecover.processes import identity
from walrecover.rundir import RunDir

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "daemon" / "grafana" / "walrecover.json"
METRIC = re.compile(r"\bwalrecover_\w+")


# --- systemd --------------------------------------------------------------------------------------


class Manager:
    """The side of the socket that systemd listens on."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)

    def hear(self, seconds: float = 60.0) -> str:
        """The next word. Raises TimeoutError."""
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode()

    def await_word(self, word: str) -> None:
        while self.hear() != word:
            pass

    def close(self) -> None:
        self._socket.close()


@contextmanager
def notified(root: Path, folder: Path, micros: int) -> Iterator[tuple[Manager, int]]:
    """A daemon under a watchdog of so many microseconds; its pid."""
    manager = Manager(folder / "notify")
    environ = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(micros)}
    process = readmodels.daemon("serve", root, env=environ)
    try:
        yield manager, process.pid
    finally:
        process.terminate()
        process.communicate(timeout=60)
        manager.close()


def test_systemd_is_told_that_it_is_ready_goes_round_and_ends(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    with notified(root, tmp_path, 600_000) as (manager, pid):
        first = manager.hear()
        assert first == "READY=1"
        assert "STATUS=0 runs followed" in (manager.hear(), manager.hear(), manager.hear())
        for _ in range(3):
            manager.await_word("WATCHDOG=1")
        assert "NOTIFY_SOCKET" not in psutil.Process(pid).children()[0].environ()
        os.kill(pid, signal.SIGTERM)
        manager.await_word("STOPPING=1")


def test_a_follower_that_is_stuck_is_not_said_to_go_round(root: Path, tmp_path: Path) -> None:
    """The page still answers: only the follower's own loop can tell."""
    run = RunDir(root, "one")
    with Launch.begin(run) as launch, notified(root, tmp_path, 400_000) as (manager, pid):
        launch.train()
        manager.await_word("WATCHDOG=1")
        follower = next(
            each for each in psutil.Process(pid).children() if "worker" in " ".join(each.cmdline())
        )
        follower.suspend()
        with pytest.raises(TimeoutError):
            while True:
                manager.hear(2.0)  # five times what it may take
        follower.resume()
        manager.await_word("WATCHDOG=1")


def test_an_abstract_socket_will_do_and_another_processs_watchdog_is_not_answered() -> None:
    from walrecover_daemon.notifying import Notifier

    name = f"walrecover-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        environ = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"}
        notifier = Notifier(environ)
        assert (notifier.beat, environ) == (None, {})
        notifier.goes_round()
        notifier.ready()
        assert manager.recv(100) == b"READY=1"
    notifier.stopping()  # nobody listens any more
    Notifier({}).ready()


# --- Grafana --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The metrics that a daemon exports of a run that failed, was pruned and archived: the names of
    their labels, by name."""
    folder = tmp_path_factory.mktemp("exported")
    root = folder / ".walrecover"
    run = RunDir(root, "one")
    with Launch.begin(run) as launch:
        for _ in range(4):
            launch.train()
            launch.save()
    text = f"retention: [{{keep_last: 2}}]\narchive: {{to: {folder / 'vault'}, every: 0.1s}}\n"
    text += "alerts: {disk_free: 0.9999}\n"
    with Launch.begin(run, identity()) as launch:
        launch.train()
        launch.journals[0].append(ev.ShardsWritten(step=launch.step, files=(), seconds=0.1))
        launch.save()
        process = readmodels.daemon("serve", root, "--guard", guard_file(folder, text=text))
        try:
            url = readmodels.address(process)
            found = wait_until(lambda: scraped(url), seconds=180.0, pause=0.1)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    samples: dict[str, set[str]] = {}
    for line in found.splitlines():
        if match := re.match(r"(walrecover_\w+)(?:\{(.*)\})? ", line):
            labels = set(re.findall(r'(\w+)="', match[2] or ""))
            samples.setdefault(match[1], set()).update(labels)
    return samples


def scraped(url: str) -> str:
    """What is exported, once all of it is known."""
    text = httpx.get(f"{url}metrics", timeout=30).text
    wanted = ("alerts{", "archived_entries{", "retired_snapshots{", "_point_whole{", "_bytes{")
    return text if all(each in text for each in wanted) else ""


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> list[str]:
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return asked + [one["query"]["query"] for one in dashboard()["templating"]["list"]]


def test_every_metric_and_label_that_the_dashboard_asks_for_is_exported(
    exported: dict[str, set[str]],
) -> None:
    asked = {name for query in queries() for name in METRIC.findall(query)}
    assert len(asked) > 15
    assert asked <= exported.keys(), sorted(asked - exported.keys())
    for query in queries():
        names = METRIC.findall(query)
        known = set().union(*(exported[name] for name in names))
        used = set(re.findall(r"(\w+)\s*=~?\s*\"", query))
        for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            used |= {name.strip() for name in listed.split(",")}
        assert used <= known, query


def test_every_metric_is_on_the_dashboard_and_in_the_specs(exported: dict[str, set[str]]) -> None:
    asked = {name for query in queries() for name in METRIC.findall(query)}
    assert exported.keys() - asked == {"walrecover_run_restarts_created"} & exported.keys()
    written = readmodels.spec("19-daemon.md") + readmodels.spec("22-guarding.md")
    assert {name.removesuffix("_total") for name in exported} <= set(METRIC.findall(written))


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    found = dashboard()
    assert found["id"] is None and re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", found["uid"])
    assert found["schemaVersion"] >= 38 and found["title"]
    (source,) = found["__inputs"]
    assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
    use = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    kinds = {one["id"] for one in found["__requires"] if one["type"] == "panel"}
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        assert panel["type"] in kinds and panel["title"]
        assert panel["datasource"] == use
        assert all(one["datasource"] == use and one["expr"] for one in panel["targets"])
        assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"])
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    assert all(one["datasource"] == use for one in found["templating"]["list"])
