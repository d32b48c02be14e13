"""From SIGKILL of the training process to its next completed step; the peer is torchrun.

What counts is the time beyond one median step. The split is read from the journal: the end was
seen, the restart decided, the process started, the state restored, the first step done.
`seen` is when the end is journaled with its cause: SIGCHLD comes within 10 ms. The rest is the end
of loader workers that were left behind, and a new interpreter that examines the ranks' streams,
since a supervisor with threads and an open journal must not fork.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.measure import Row, as_installed, at_most, duration, sample, show
from tests.support.waiting import wait_until
from walrecover.events import RestartDecided, Resumed, StepCompleted, WorkerExited, WorkerStarted
from walrecover.journal import Reader, find_streams
from walrecover.rehearse.watch import Watch
from walrecover.rundir import RunDir

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).parent / "scripts" / "char_gpt_saved.py"
KILLS, EVERY, EPOCHS = 5, 20, 1000
STEPS_BETWEEN = 25
DEADLINE_SECONDS = 300.0
BOUNDS = {"parked": 0.1, "imported": 0.35, "off": 1.1}
SPLIT = ("seen", "decided", "started", "restored", "first step")


class Step(NamedTuple):
    at: float
    number: int
    pid: int


def wait_for(what: Callable[[], Any]) -> Any:
    return wait_until(what, DEADLINE_SECONDS, pause=0.02)


@contextlib.contextmanager
def running(command: list[str], folder: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**as_installed(folder.parent / "bytecode"), "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


# -- the peer ------------------------------------------------------------------------------------


def steps_of(path: Path) -> list[Step]:
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Step(float(at), int(step), int(pid)) for at, step, pid in lines]


def of_peer(folder: Path) -> list[float]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "1", "--max-restarts", str(KILLS + 1)]
    path, killed = folder / "steps", []
    told = {"STATE": str(folder / "state.pt"), "STEPS": str(path), "EVERY": str(EVERY)}
    with running([*torchrun, str(PEER), "--epochs", str(EPOCHS)], folder, **told):
        pid = 0
        for _ in range(KILLS):
            pid = wait_for(lambda last=pid: peer_ready(path, last))
            killed.append(time.time())
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda last=pid: peer_ready(path, last))
    return beyond(killed, [step.at for step in steps_of(path)])


def peer_ready(path: Path, last: int) -> int:
    """The process to kill, once it has made its steps."""
    steps = steps_of(path)
    mine = [step for step in steps if step.pid == steps[-1].pid]
    return mine[-1].pid if len(mine) >= STEPS_BETWEEN and mine[-1].pid != last else 0


def beyond(killed: list[float], steps: list[float]) -> list[float]:
    """From each kill to the next completed step, less a median step."""
    between = [b - a for a, b in pairwise(steps)]
    median = statistics.median(between)
    return [min(at for at in steps if at > kill) - kill - median for kill in killed]


# -- ours ----------------------------------------------------------------------------------------


class Ours(NamedTuple):
    beyond: list[float]
    split: list[list[float]]
    resident: int


def of_standby(kind: str, folder: Path) -> Ours:
    run = RunDir(folder / "runs", "bench")
    ours = [sys.executable, "-m", "walrecover.cli", "run", "--name", run.name, "--standby", kind]
    ours += ["--dir", str(run.root), "--every", f"{EVERY}steps", "--", sys.executable]
    ours += [str(ROOT / "examples" / "char_gpt.py"), "--epochs", str(EPOCHS)]
    killed, resident, attempt = [], 0, 0
    with running(ours, folder) as process, contextlib.closing(Watch(run, process.pid)) as watch:
        for _ in range(KILLS):
            attempt, pid, first = wait_for(lambda last=attempt: our_first(watch, last))
            if kind != "off":
                standby = wait_for(lambda: standby_of(process.pid))
                statm = Path(f"/proc/{standby}/statm").read_text().split()
                resident = max(resident, int(statm[1]) * os.sysconf("SC_PAGE_SIZE"))
            wait_for(lambda until=first + STEPS_BETWEEN: our_step(watch) >= until)
            killed.append(time.time())
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda last=attempt: our_first(watch, last))
        wait_for(lambda: times_of(run)[0][-1] > killed[-1])  # it is committed a moment later
    steps, marks = times_of(run)
    return Ours(beyond(killed, steps), [split_of(kill, marks) for kill in killed], resident)


def our_first(watch: Watch, last: int) -> tuple[int, int, int] | None:
    """Attempt, process and step of a newer attempt that trains."""
    attempt = watch.attempt()
    if attempt is None or attempt.number == last or attempt.read(0).phase != "training":
        return None
    return attempt.number, attempt.ranks[0].process.pid, attempt.read(0).step


def our_step(watch: Watch) -> int:
    attempt = watch.attempt()
    return attempt.read(0).step if attempt else 0


def standby_of(supervisor: int) -> int:
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().strip() == "walrecover-wait":
                return int(pid)
    return 0


def times_of(run: RunDir) -> tuple[list[float], dict[str, list[float]]]:
    """When each step was completed, and each part of a restart."""
    names = dict(zip(
        (WorkerExited, RestartDecided, WorkerStarted, Resumed, StepCompleted), SPLIT, strict=True
    ))  # fmt: skip
    marks: dict[str, list[float]] = {name: [] for name in SPLIT}
    for stream, path in find_streams(run.journal):
        with Reader(path, stream) as reader:
            for _, event in reader.read():
                if type(event) in names:
                    marks[names[type(event)]].append(event.at)
    return sorted(marks["first step"]), marks


def split_of(kill: float, marks: dict[str, list[float]]) -> list[float]:
    """How long each part of one restart took."""
    reached = [kill, *(min(at for at in marks[name] if at > kill) for name in SPLIT)]
    return [b - a for a, b in pairwise(reached)]


def rows() -> list[Row]:
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in ("peer", *BOUNDS)}
        for folder in folders.values():
            folder.mkdir()
        peer = sample(of_peer(folders["peer"]))
        for kind, bound in BOUNDS.items():
            ours = of_standby(kind, folders[kind])
            what = "cold" if kind == "off" else kind
            found.append(at_most(f"restart, {what}", sample(ours.beyond), peer, bound))
            parts = [statistics.median(column) for column in zip(*ours.split, strict=True)]
            split = ", ".join(f"{n} {duration(s)}" for n, s in zip(SPLIT, parts, strict=True))
            memory = f"{ours.resident / 1e6:.0f} MB" if ours.resident else ""
            found.append(Row("  its parts; the standby's memory", split, memory, None, "", None))
    return found


if __name__ == "__main__":
    raise SystemExit(not show("Restart after SIGKILL, beyond one median step", rows()))
