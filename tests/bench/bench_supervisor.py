"""What the supervisor itself costs while a script trains, and how soon it sees an exit.

Beside its own time on a core, in the same seconds: the training's. An exit is seen when the
supervisor has reaped it; the clock starts when another process's pidfd of the same child fires.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.measure import Row, as_installed, duration, sample, show

ROOT = Path(__file__).parents[2]
EXITS = 30
WINDOWS, WINDOW_SECONDS = 8, 5.0
WARM_UP_SECONDS = 10.0

WAITER = "import os, signal; print(os.getpid(), flush=True); signal.pause()"


def supervised(folder: Path, *command: str) -> subprocess.Popen[str]:
    walrecover = [sys.executable, "-m", "walrecover.cli", "run", "--no-preflight"]
    return subprocess.Popen(
        [*walrecover, "--max-restarts", "0", "--", *command],
        cwd=folder,
        env=as_installed(folder / "bytecode") | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def exit_seen(folder: Path) -> float:
    """Seconds from the kernel's word of an exit until the supervisor has reaped it."""
    with supervised(folder, sys.executable, "-c", WAITER) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [])
        began = time.perf_counter()
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                seconds = time.perf_counter() - began
                break
        os.close(fd)
        process.wait()
        return seconds


def on_core(pid: int) -> float:
    """Seconds that all threads of a process have spent on a core, by the scheduler's own clock."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9


def shares(folder: Path) -> tuple[list[float], list[float]]:
    """The supervisor's and the training's share of a core, window by window."""
    script = str(ROOT / "examples" / "char_gpt.py")
    process = supervised(folder, sys.executable, script, "--epochs", "1000", "--workers", "0")
    ours: list[float] = []
    training: list[float] = []
    try:
        assert process.stdout
        while "step 20 " not in process.stdout.readline():
            pass
        time.sleep(WARM_UP_SECONDS)
        children = psutil.Process(process.pid).children()  # the training, and its standby
        child = max(children, key=lambda one: on_core(one.pid))
        for _ in range(WINDOWS):
            before = time.monotonic(), on_core(process.pid), on_core(child.pid)
            time.sleep(WINDOW_SECONDS)
            spent = time.monotonic() - before[0]
            ours.append((on_core(process.pid) - before[1]) / spent)
            training.append((on_core(child.pid) - before[2]) / spent)
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.kill()
        process.communicate()
    return ours, training


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        exit_seen(Path(name))
        seen = sample([exit_seen(Path(name)) for _ in range(EXITS)])
    with tempfile.TemporaryDirectory() as name:
        ours, training = (sample(share) for share in shares(Path(name)))
    what = "an exit, from the kernel's word until the supervisor has reaped it"
    own = f"{ours.median:.3%} [{ours.low:.3%}, {ours.high:.3%}]"
    return [
        Row(what, str(seen), "", None, f"≤ {duration(0.01)}", seen.median <= 0.01),
        Row(
            "the supervisor's share of a core while char_gpt.py trains, beside the training's",
            own,
            f"{training.median:.0%}",
            ours.median / training.median,
            "< 0.5% of a core",
            ours.median < 0.005,
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(not show("The supervisor", rows()))
