"""What starting costs: importing walrecover beside bare Python, the supervisor's memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.measure import Row, as_installed, sample, show, timed

ROUNDS = 15
IMPORT_BOUND = 0.040
MEMORY_BOUND = 40e6
LOOK_BOUND = 0.030
SETTLING_SECONDS = 0.5  # until what is measured is what stays


def python(code: str, bytecode: Path) -> list[float]:
    command, environ = [sys.executable, "-c", code], as_installed(bytecode)
    subprocess.run(command, check=True, env=environ)
    return timed(lambda: subprocess.run(command, check=True, env=environ), ROUNDS)


SUPERVISING = """
from pathlib import Path
from walrecover.cli.preflight import preflight
from walrecover.cli.run import command
from walrecover.rundir import RunDir
from walrecover.supervisor import supervise
"""
LOOKING = """
import tempfile
with tempfile.TemporaryDirectory() as name:
    preflight(RunDir(Path(name), "bench"), ("torchrun", "--master-port", "0", "train.py"))
"""
NOT_LOOKING = """
import tempfile
with tempfile.TemporaryDirectory() as name:
    pass
"""


def looking() -> Row:
    """Looking at storage and port before a run, over a process that only could have."""
    with_it, without = [], []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(3):
            with_it += python(SUPERVISING + LOOKING, Path(name))
            without += python(SUPERVISING + NOT_LOOKING, Path(name))
    over = sample(with_it).median - sample(without).median
    return Row(
        "a look at storage and port before a run",
        str(sample(with_it)),
        str(sample(without)),
        None,
        "+ ≤ 30 ms",
        over <= LOOK_BOUND,
    )


def supervisor_memory() -> float:
    """Resident bytes of `walrecover run` while its command works."""
    with tempfile.TemporaryDirectory() as name:
        environ = {**os.environ, "WALRECOVER_DIR": name}
        child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
        process = subprocess.Popen(
            [sys.executable, "-m", "walrecover.cli", "run", "--name", "bench", "--", *child],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(SETTLING_SECONDS)
        memory = psutil.Process(process.pid).memory_info().rss
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()
    return float(memory)


def rows() -> list[Row]:
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(3):
            bare += python("pass", Path(name))
            ours += python("import walrecover", Path(name))
    over = sample(ours).median - sample(bare).median
    memory = supervisor_memory()
    return [
        Row(
            "import walrecover over bare Python",
            str(sample(ours)),
            str(sample(bare)),
            None,
            "+ ≤ 40 ms",
            over <= IMPORT_BOUND,
        ),
        Row(
            "the supervisor's resident memory",
            f"{memory / 1e6:.1f} MB",
            "",
            None,
            "≤ 40 MB",
            memory <= MEMORY_BOUND,
        ),
        looking(),
    ]


if __name__ == "__main__":
    raise SystemExit(not show("Starting", rows()))
