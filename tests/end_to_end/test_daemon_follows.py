"""The follower where following is hard: much to read, silence, odd files, clocks, many streams."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import readmodels
from tests.support.daemon_kills import follower_of
from tests.support.protocol import Launch
from tests.support.readmodels import rows, run_daemon
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.journal import Journal, find_streams
from walrecover.processes import identity
from walrecover.rundir import RunDir
from walrecover_daemon.keeper import Keeper
from walrecover_daemon.reading import MOST_OPEN
from walrecover_daemon.streaming import SLICE
from walrecover_daemon.worker import Job

MANY = 10 * SLICE


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose journal takes more than a second to read."""
    root = tmp_path_factory.mktemp("long") / ".walrecover"
    run = RunDir(root, "long")
    with Launch.begin(run, world=1) as launch:
        entry = launch.entry
    stream = run.stream(entry.number, entry.nonce, "rank-9")
    first = ev.AttemptBegun(run="long", attempt=1, nonce=entry.nonce, writer="rank-9", rank=9)
    with Journal.create(stream, attempt=1, first=first, map_bytes=1 << 28) as journal:
        for step in range(1, MANY):
            journal.append(ev.StepCompleted(step=step, scalars={"loss": 1.0}))
    return root


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def test_a_long_journal_on_the_first_start_shows_its_progress_on_a_page_that_can_be_used(
    long: Path, tmp_path: Path
) -> None:
    model = tmp_path / "read-model.db"
    process = readmodels.daemon("serve", long, "--read-model", model)
    try:
        with httpx.Client(base_url=readmodels.address(process), timeout=30) as page:
            follower = psutil.Process(wait_until(lambda: follower_of(process.pid)))
            wait_until(lambda: events_read(page) > 0)
            assert os.sched_getscheduler(follower.pid) == os.SCHED_IDLE  # behind every training
            with stopped(follower):  # in the middle of it, for as long as we look
                assert readmodels.count(model) > 0
                ready = page.get("/readyz")
                assert (ready.status_code, ready.text) == (503, "1 runs to read\n")
                assert page.get("/livez").text == "alive\n"
                assert page.get("/runs/long").status_code == 200
                assert 'href="/runs/long?id=1"' in page.get("/").text
                with page.stream("GET", "/live") as live:
                    (said,) = (line for line in first_lines(live, 5) if "reading" in line)
            read = int(said.removeprefix("data: reading: ").split()[0])
            assert said.endswith(" events, 1 run to go")
            assert 0 < read < MANY
            wait_until(lambda: page.get("/readyz").status_code == 200)
        assert readmodels.count(model) == MANY + 2
    finally:
        process.terminate()
        process.communicate(timeout=60)


def events_read(page: httpx.Client) -> float:
    """What the page has heard of it, which is a moment after the rows are written."""
    families = text_string_to_metric_families(page.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return next(one.value for one in samples if one.name == "walrecover_follower_events")


def first_lines(stream: httpx.Response, count: int) -> list[str]:
    lines = stream.iter_lines()
    return [next(lines) for _ in range(count)]


def test_a_follower_that_falls_silent_while_it_reads_is_started_again(
    long: Path, tmp_path: Path
) -> None:
    """It is stopped until that was in the middle of reading; the patience is two seconds."""
    model, told = tmp_path / "read-model.db", list[str]()
    keeper = Keeper(Job(str(model), "", [str(long)], once=True), told.append, patience=2.0)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        wait_until(lambda: readmodels.count(model) > 0)
        while thread.is_alive() and not told:
            # Where it was not in the middle of reading nothing comes of it, and it goes on.
            with contextlib.suppress(AssertionError, psutil.NoSuchProcess):
                follower = wait_until(lambda: follower_of(os.getpid()), seconds=1.0, pause=0.001)
                with stopped(psutil.Process(follower)):
                    wait_until(lambda: told, seconds=4.0, pause=0.01)
    finally:
        keeper.stop()
        thread.join()
    assert "rank-9 ended the follower: it is examined apart" in told[0]
    assert keeper.heard.restarts == 1
    assert run_daemon("serve", "--once", long, "--read-model", model)[0] == 0
    assert readmodels.count(model) == MANY + 2


def test_more_streams_than_may_be_open_are_all_followed(root: Path, path: Path) -> None:
    runs = [RunDir(root, f"run-{number}") for number in range(MOST_OPEN + 6)]
    launches = [Launch.begin(run, world=1) for run in runs]
    process = readmodels.daemon("serve", root)
    try:
        assert readmodels.address(process)
        for steps in (2, 4):
            for launch in launches:
                launch.train(2)
            sql = "SELECT count(*) AS n FROM runs WHERE last_step=? AND settled"
            wait_until(lambda sql=sql, n=steps: counted(path, sql, n) == len(runs), pause=0.1)
            assert len(open_journals(process.pid)) == MOST_OPEN
    finally:
        process.terminate()
        process.communicate(timeout=60)
        for launch in launches:
            launch.close()
    assert run_daemon("serve", "--once", root)[0] == 0
    for run in runs:
        readmodels.agrees(path, run)


def counted(path: Path, sql: str, step: int) -> int:
    return int(rows(path, sql, step)[0]["n"]) if readmodels.count(path) else 0


def open_journals(daemon: int) -> set[str]:
    follower = psutil.Process(follower_of(daemon))
    maps = (each.path for each in follower.memory_maps(grouped=False))
    return {path for path in maps if path.endswith("data.mdb")}


def test_what_is_no_file_where_one_must_be_is_said_and_holds_nobody_up(
    root: Path, path: Path
) -> None:
    """Opening a pipe would wait for its writer, for ever; a link could lead anywhere."""
    runs = {name: RunDir(root, name) for name in ("pipe", "link", "folder", "lease", "good")}
    for run in runs.values():
        with Launch.begin(run, world=1) as launch:
            launch.train(2)
            meeting = run.meeting(launch.entry.number, launch.entry.nonce)
            meeting.mkdir(parents=True, exist_ok=True)
    os.mkfifo(meeting.parents[2] / "lease" / "imported.json")
    ((_, stream),) = find_streams(runs["pipe"].journal)
    (stream / "data.mdb").unlink()
    os.mkfifo(stream / "data.mdb")
    os.mkfifo(runs["lease"].meeting(*attempt_of(runs["lease"])) / "lease")
    (runs["link"].sequence / "00000002.json").symlink_to("/dev/zero")
    (runs["folder"].sequence / "00000002.json").mkdir()
    assert run_daemon("serve", "--once", root) == (0, '{"runs":5,"events":16}\n', "")
    found = {row["name"]: row for row in rows(path, "SELECT name, state, problem FROM runs")}
    assert found["link"]["problem"] == "00000002.json is a link, or lies behind one"
    assert found["folder"]["problem"] == "00000002.json is not a regular file"
    (row,) = rows(path, "SELECT problem FROM streams WHERE kind='Corrupt'")
    assert row["problem"] == "data.mdb is not a regular file"
    for name in ("lease", "good"):
        readmodels.agrees(path, runs[name])


def attempt_of(run: RunDir) -> tuple[int, str]:
    ((stream, _),) = find_streams(run.journal)
    return stream.attempt, stream.nonce


@pytest.mark.parametrize("days", [-20_000, -1, 1, 10_000])
def test_a_clock_that_was_set_elsewhere_hides_nothing(
    root: Path, tmp_path: Path, days: int
) -> None:
    """The files and the events are of another time than the follower's."""
    run, path = RunDir(root, "one"), tmp_path / "read-model.db"
    other = max(0.0, time.time() + days * 86_400)
    readmodel, finder, follower = readmodels.opened(root, path)
    try:
        with Launch.begin(run, identity(), world=1) as launch:
            (stream,) = [path for _, path in find_streams(run.journal)]
            for step in range(1, 6):
                launch.train(1)
                launch.journals[0].append(ev.RunStopped(step=step, at=other - 1000 * step))
                launch.journals[0].sync()
                for file in (stream / "data.mdb", run.sequence):
                    os.utime(file, (other - step, other - step))
                readmodels.catch_up(finder, follower)
                (row,) = rows(path, "SELECT last_step, state FROM runs")
                assert (row["last_step"], row["state"]) == (step, "running")
        follower.close()
    finally:
        readmodel.close()
    readmodels.agrees(path, run)


class SomethingNew(msgspec.Struct, frozen=True, tag=True):
    """An event of a later release."""

    at: float
    step: int
    why: str


def test_an_event_of_a_later_release_is_a_row_like_any_other(root: Path, path: Path) -> None:
    run = RunDir(root, "one")
    with Launch.begin(run, world=1) as launch:
        launch.train(2)
        launch.journals[0].append(SomethingNew(at=5.0, step=2, why="<b>"))  # type: ignore[arg-type]
        launch.train(2)
    assert run_daemon("serve", "--once", root)[0] == 0
    readmodels.agrees(path, run)
    (row,) = rows(path, "SELECT at, step, body FROM events WHERE type='SomethingNew'")
    assert row == {"at": 5.0, "step": 2, "body": '{"step":2,"why":"<b>"}'}
