"""A serving daemon that is killed over and over while the journals that it follows grow."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from tests.support import readmodels
from tests.support.protocol import Launch
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.rundir import RunDir

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
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):
            if "walrecover_daemon.worker" in child.cmdline():
                return child.pid
    return None


def kill_over_and_over(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Nothing may be lost, and nothing be there twice; returns what was done, counted."""
    root = folder / ".walrecover"
    path = root / "daemon" / "read-model.db"
    runs = [RunDir(root, name) for name in ("one", "other")]
    followers = 0
    with training(*runs):
        wait_until(lambda: all(run.exists() for run in runs))
        for number in range(kills):
            before = readmodels.count(path)
            process = readmodels.daemon("serve", root)
            if number % 4 == 3:  # its follower alone: the keeper starts another
                victim = wait_until(lambda process=process: follower_of(process.pid))
                os.kill(victim, signal.SIGKILL)
                followers += 1
            more = before + chance.randrange(1, 300)
            wait_until(lambda more=more: readmodels.count(path) >= more)
            process.kill()
            readmodels.ended(process)
    code, said, complaints = readmodels.run_daemon("serve", "--once", root)
    assert (code, complaints) == (0, ""), said
    for run in runs:
        readmodels.agrees(path, run)
    anew = folder / "anew.db"
    assert readmodels.run_daemon("rebuild", root, "--read-model", anew)[0] == 0
    assert readmodels.dump(anew) == readmodels.dump(path)
    return {"daemons": kills, "followers": followers, "events": readmodels.count(path)}
