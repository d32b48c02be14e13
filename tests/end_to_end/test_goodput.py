"""Where the time of a real run went that was killed: it adds up, and it is what its events say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from walrecover.pace import optimum

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "killed.py"
KILLS = (37, 60)

pytestmark = pytest.mark.slow


class Killed(NamedTuple):
    """What the commands say of the run, and the seconds that its supervisor took."""

    status: Any
    show: Any
    events: list[dict[str, Any]]
    text: str
    table: str
    seconds: float


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "walrecover.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Each attempt but the last ends itself by SIGKILL in the middle of a step."""
    folder = tmp_path_factory.mktemp("killed")
    began = time.monotonic()
    done = command(
        folder,
        *("run", "--every", "auto", "--standby", "off", "--no-preflight", "--"),
        *(sys.executable, str(SCRIPT), ",".join(map(str, KILLS))),
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    log = command(folder, "log", "--json").stdout.splitlines()
    (row,) = json.loads(command(folder, "status", "--json").stdout)["runs"]
    return Killed(
        row,
        json.loads(command(folder, "show", "--json").stdout),
        [json.loads(line) for line in log],
        command(folder, "show").stdout,
        command(folder, "status").stdout,
        seconds,
    )


def streams(killed: Killed, writer: str) -> list[list[dict[str, Any]]]:
    """The events of one writer, attempt by attempt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in sorted(killed.events, key=lambda event: event["lsn"]):
        label, _, name = event["stream"].partition("/")
        if name == writer:
            found.setdefault(label, []).append(event)
    return [found[label] for label in sorted(found)]


def of_type(stream: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    return [event for event in stream if event["type"] in types]


def test_it_adds_up(killed: Killed) -> None:
    for row in (killed.status, killed.show):
        goodput = row["goodput"]
        assert sum(goodput["seconds"].values()) == pytest.approx(goodput["wall"], rel=0.01)
        assert goodput["share"] == goodput["seconds"]["productive"] / goodput["wall"]
    assert killed.status["goodput"] == killed.show["goodput"]


def test_the_wall_time_is_that_of_the_run(killed: Killed) -> None:
    first = min(e["at"] for e in of_type(killed.events, "AttemptBegun"))
    last = max(e["at"] for e in killed.events)
    wall = killed.show["goodput"]["wall"]
    assert wall == pytest.approx(last - first, abs=1e-3)
    assert 0.5 * killed.seconds <= wall <= killed.seconds  # the rest is Python's, before and after


def test_what_was_trained_stalled_and_done_again_is_what_the_events_say(killed: Killed) -> None:
    """Worked out anew from every single event, step by step."""
    productive = again = stalled = 0.0
    furthest = 0
    exits = [of_type(stream, "WorkerExited")[0] for stream in streams(killed, "supervisor")]
    for stream, exited in zip(streams(killed, "rank-0"), exits, strict=True):
        events = of_type(stream, "Resumed", "PlaceReached", "StepCompleted", "LoopStalled")
        at, reached = 0.0, furthest
        for event in events:
            passed = event["at"] - at
            if event["type"] == "LoopStalled":
                stalled += event["seconds"]
                passed -= event["seconds"]
            if event["type"] in ("StepCompleted", "LoopStalled") and event["step"] > furthest:
                productive += passed
            elif event["type"] in ("StepCompleted", "LoopStalled"):
                again += passed
            if event["type"] == "StepCompleted":
                reached = max(reached, event["step"])
            at = event["at"]
        if exited.get("signal") == 9:
            again += exited["seen"] - at
        furthest = reached
    found = killed.show["goodput"]
    close = {"abs": 0.01 * found["wall"]}
    assert found["seconds"]["productive"] == pytest.approx(productive, **close)
    assert found["seconds"]["reexecuted"] == pytest.approx(again, **close)
    assert found["seconds"]["capture_stall"] == pytest.approx(stalled, **close)
    assert min(productive, again, stalled) > 0


def test_the_time_between_two_attempts_is_that_of_its_events(killed: Killed) -> None:
    """From the death on, first to last: seen, decided, begun, attached, restored."""
    supervisors, ranks = streams(killed, "supervisor"), streams(killed, "rank-0")
    detection = restart = restore = 0.0
    for number, (notes, rank) in enumerate(zip(supervisors, ranks, strict=True)):
        begun, back = of_type(rank, "AttemptBegun")[0], of_type(rank, "Resumed", "PlaceReached")[-1]
        exited, decided = of_type(notes, "WorkerExited")[0], of_type(notes, "RestartDecided")[0]
        started = notes[0]["at"]
        if number:
            before = of_type(supervisors[number - 1], "RestartDecided")[0]
            started = before["at"] + before.get("delay", 0.0)
        restart += begun["at"] - started
        restore += back["at"] - begun["at"]
        detection += decided["at"] - exited["seen"] if exited.get("signal") else 0.0
    found = killed.show["goodput"]
    close = {"abs": 0.01 * found["wall"]}
    assert found["seconds"]["restart"] == pytest.approx(restart, **close)
    assert found["seconds"]["restore"] == pytest.approx(restore, **close)
    assert found["seconds"]["detection"] == pytest.approx(detection, **close)
    assert all(found["seconds"][kind] > 0 for kind in ("restart", "restore", "detection"))


def test_each_attempt_s_part_is_there(killed: Killed) -> None:
    parts = [sum(attempt["spent"].values()) for attempt in killed.show["attempts"]]
    assert len(parts) == len(KILLS) + 1
    assert sum(parts) == pytest.approx(killed.show["goodput"]["wall"], rel=0.01)


def test_the_pace_follows_the_failures_as_soon_as_there_are_some(killed: Killed) -> None:
    paces = [of_type(stream, "PaceSet") for stream in streams(killed, "rank-0")]
    assert [pace["every"] for pace in paces[0]] != []
    assert not any(pace["between"] for pace in paces[0])  # nothing had failed
    for later in paces[1:]:
        for pace in later:
            wanted = optimum(pace["cost"], pace["between"])
            assert pace["seconds"] == pytest.approx(wanted)
            assert 0 < pace["cost"] < pace["between"]
    assert any(paces[1:])
    assert killed.show["goodput"]["failures"] == len(KILLS)
    found = killed.show["goodput"]
    best = optimum(found["capture_cost"], found["between_failures"])
    assert found["best_pace"] == pytest.approx(best)


def test_people_read_it_in_status_and_show(killed: Killed) -> None:
    share = f"{killed.show['goodput']['share']:.1%}"
    assert share in killed.table
    assert f"{killed.show['pace']['every']} steps, best " in killed.table
    assert f"goodput {share} of" in killed.text
    for word in ("productive", "re-executed", "capture stall", "detection", "restart", "restore"):
        assert f"\n  {word} " in killed.text
    assert "best is every" in killed.text
