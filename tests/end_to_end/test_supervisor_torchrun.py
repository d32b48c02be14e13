"""`supervise` over torchrun, whose workers live in sessions of their own: it leaves no process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

DRIVER = """
    import sys
    from pathlib import Path
    from walrecover.policy import Policy
    from walrecover.rundir import RunDir
    from walrecover.supervisor import supervise

    sys.exit(supervise(sys.argv[2:], RunDir(Path(sys.argv[1]), "run"), Policy(max_restarts=0)))
"""

# Attached, as a session would be, in the middle of a step that takes long. A stop takes a moment:
# it stands for the end of the step and the snapshot.
WORKER = """
    import os, signal, sys, time
    import torch.distributed as dist
    from walrecover.processes import watch_supervisor

    stopped = False
    def stop(number, frame):
        global stopped
        stopped = True

    def say(word):  # in one piece: torchrun starts Python unbuffered, and both write to one pipe
        os.write(1, f"{word} {os.getpid()}\\n".encode())

    signal.signal(signal.SIGTERM, stop)
    dist.init_process_group("gloo")
    pid, started, _ = os.environ["WALRECOVER_SUPERVISOR"].split(":")
    assert watch_supervisor(int(pid), float(started))
    dist.barrier()
    say("up")
    while not stopped:
        time.sleep(0.05)
    time.sleep(0.3)  # what its last save takes
    say("saved")
    sys.exit(128 + signal.SIGTERM)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    worker = tmp_path / "worker.py"
    worker.write_text(textwrap.dedent(WORKER))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    driver = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "dir")]
    process: subprocess.Popen[str] = subprocess.Popen(
        [*driver, *torchrun, str(worker)],
        text=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.communicate()


def workers(supervisor: subprocess.Popen[str], word: str) -> set[int]:
    assert supervisor.stdout
    found = {}
    while len(found) < 2:
        line = supervisor.stdout.readline()
        assert line, f"ended before {word!r}: {supervisor.communicate()[1]}"
        said, _, pid = line.partition(" ")
        if said == word:
            found[int(pid)] = None
    return set(found)


def ends(pid: int, seconds: float = 15.0) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


@pytest.mark.slow
def test_a_stop_lets_every_worker_finish_and_leaves_no_process(
    supervisor: subprocess.Popen[str],
) -> None:
    pids = workers(supervisor, "up")
    supervisor.send_signal(signal.SIGTERM)
    assert workers(supervisor, "saved") == pids
    _, said = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 1  # torchrun's own, whatever its workers ended with
    assert "asked to stop" in said
    assert all(ends(pid, 0) for pid in pids)


@pytest.mark.slow
def test_a_supervisor_that_is_killed_leaves_no_process(supervisor: subprocess.Popen[str]) -> None:
    pids = workers(supervisor, "up")
    supervisor.kill()
    assert all(ends(pid) for pid in pids)  # torchrun itself: the check after every test


@pytest.mark.slow
def test_a_torchrun_that_is_killed_takes_its_workers_along(
    supervisor: subprocess.Popen[str],
) -> None:
    pids = workers(supervisor, "up")
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    (torchrun,) = map(int, children.read_text().split())
    os.kill(torchrun, signal.SIGKILL)
    supervisor.communicate(timeout=60)
    assert supervisor.returncode == 128 + signal.SIGKILL
    assert all(ends(pid, 0) for pid in pids)
