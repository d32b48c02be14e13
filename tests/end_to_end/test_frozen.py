"""What training leaves as it is, is on the disk twice however often it is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forkserver import ForkServer
from tests.support.protocol import candidates
from tests.support.waiting import await_savers
from walrecover import events, snapshot
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir
from walrecover.saver.process import MOST_UNREAD

FROZEN_BYTES = 64 * 64 * 4


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    made = ForkServer()
    yield made
    made.close()


def train(server: ForkServer, folder: Path, *, steps: int, die_at: int = 0) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    result = folder / "result"
    child = server.start(
        "tests.support.frozen:train", folder=folder, output=folder / "output",
        env={"WALRECOVER_KEEP": "2"}, steps=steps, die_at=die_at, result=str(result),
    )  # fmt: skip
    code = child.wait()
    await_savers(folder)
    return code, result.read_text() if result.exists() else ""


def test_captures_that_come_without_a_pause_are_read_back_and_retired_all_the_same(
    server: ForkServer, tmp_path: Path
) -> None:
    assert train(server, tmp_path / "fast", steps=40)[0] == 0
    run = RunDir(tmp_path / "fast" / ".walrecover", "a-run")
    there, most = set[int](), 0
    for _, event in read_events(run, "saver-0"):
        if isinstance(event, events.SnapshotCommitted):
            there.add(event.step)
        elif isinstance(event, events.SnapshotsRetired):
            there -= {int(name.split("-")[1].split(".")[0]) for name in event.names}
        most = max(most, len(there))
    assert most <= 2 + 2 * MOST_UNREAD


def written(run: RunDir) -> list[int]:
    """Bytes of the shards of the newest snapshots, newest first."""
    return [
        (run.snapshots / ref.name / "rank-00000.safetensors").stat().st_size
        for ref in candidates(run)
    ]


def test_what_is_frozen_is_referenced_and_comes_back_after_a_kill(
    server: ForkServer, tmp_path: Path
) -> None:
    code, straight = train(server, tmp_path / "straight", steps=12)
    assert code == 0
    folder = tmp_path / "killed"
    run = RunDir(folder / ".walrecover", "a-run")
    assert train(server, folder, steps=12, die_at=7) == (-signal.SIGKILL, "")
    assert candidates(run)[0].step == 7
    assert all(size < FROZEN_BYTES for size in written(run)[:2])
    older = [snapshot.load_manifest(run, ref).older_files() for ref in candidates(run)[:2]]
    assert all(older) and older[0].keys().isdisjoint(older[1])
    code, resumed = train(server, folder, steps=12)
    assert code == 0
    assert resumed.split()[:2] == straight.split()[:2]
    assert all(size < FROZEN_BYTES for size in written(run)[:2])
    for ref in candidates(run):
        snapshot.verify(run, ref)
    shards = sum(path.stat().st_size for path in run.snapshots.rglob("*.safetensors"))
    assert shards < 3 * 2 * FROZEN_BYTES
