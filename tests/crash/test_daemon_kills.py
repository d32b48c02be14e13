"""A serving daemon is killed over and over while journals grow: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import readmodels
from tests.support.protocol import Launch
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.rundir import RunDir

KILLS = 20
PACE_SECONDS = 0.002


@contextmanager
def training(*runs: RunDir) -> Iterator[None]:
    """Runs that train until the block ends: a step every few milliseconds, a snapshot at times."""
    over = threading.Event()

    def train(run: RunDir) -> None:
        with Launch.begin(run) as launch:
            while not over.wait(PACE_SECONDS):
                launch.train()
                if launch.step % 200 == 0:
                    entry = launch.save()
                    launch.journals[0].append(
                        ev.SnapshotCommitted(step=launch.step, manifest=entry.snapshot.manifest)
                    )

    threads = [threading.Thread(target=train, args=(run,)) for run in runs]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        yield


def follower_of(pid: int) -> int | None:
    children = psutil.Process(pid).children()
    return children[0].pid if children else None


@pytest.mark.slow
def test_killed_20_times_under_load_the_daemon_loses_nothing_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    root, chance = tmp_path / ".walrecover", random.Random(1)
    path = root / "daemon" / "read-model.db"
    runs = [RunDir(root, name) for name in ("one", "other")]
    with training(*runs):
        wait_until(lambda: all(run.exists() for run in runs))
        for number in range(KILLS):
            before = readmodels.count(path)
            process = readmodels.daemon("serve", root)
            if number % 4 == 3:  # its follower alone: the keeper starts another
                victim = wait_until(lambda process=process: follower_of(process.pid))
                os.kill(victim, signal.SIGKILL)
            more = before + chance.randrange(1, 300)
            wait_until(lambda more=more: readmodels.count(path) >= more)
            process.kill()
            readmodels.ended(process)
    code, said, complaints = readmodels.run_daemon("serve", "--once", root)
    assert (code, complaints) == (0, ""), said
    for run in runs:
        readmodels.agrees(path, run)
    anew = tmp_path / "anew.db"
    assert readmodels.run_daemon("rebuild", root, "--read-model", anew)[0] == 0
    assert readmodels.dump(anew) == readmodels.dump(path)
