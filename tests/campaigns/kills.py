"""`make torture-kills`: 200 mixed kills of char_gpt.py in one run, warm restarts on.

    make torture-kills ARGS="--kills 50 --seed 7"

SIGKILL, SIGSTOP (ended as a hang), out of memory (the kernel's, in a cgroup, where we are root;
else MemoryError), an exception, SIGTERM. Each kill waits for a new step, and mostly for a standby
that is ready. The run must end with the bits of an undisturbed one, and leave neither a process nor
a file in /dev/shm. The counts go to specs/campaigns/kills.json.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.campaigns import report
from walrecover.events import WorkerExited, WorkerStarted
from walrecover.journal import Reader, find_streams
from walrecover.rehearse.watch import Watch
from walrecover.rundir import RunDir

SCRIPT = report.ROOT / "tests" / "end_to_end" / "scripts" / "mortal.py"
SMALL = ["--layers", "1", "--width", "32", "--batch-size", "4", "--context", "16"]
HOW = {"SIGKILL": 0.3, "SIGSTOP": 0.1, "memory": 0.2, "exception": 0.2, "SIGTERM": 0.2}
HANGS = "first-step=60s,step=6s,between=10s,snapshot=10s"
PATIENCE_SECONDS = 10.0
STALL_SECONDS = 300.0
END_SECONDS = 3600.0
STEPS_OF_AN_EPOCH = 40
MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 1200 << 20
SHARED = Path("/dev/shm")
PATH = str(report.ROOT)


class Plan(NamedTuple):
    """`warm`: how often a kill waits for the standby, if that comes within `patience` seconds;
    `steps`: for each kill. No more kills are made after `seconds`."""

    kills: int
    seed: int
    standby: str = "imported"
    warm: float = 0.6
    patience: float = PATIENCE_SECONDS
    steps: int = 30
    seconds: float = 24 * 3600.0


class Failed(Exception):
    """The run did not do what it must."""


def command(steps: int) -> list[str]:
    size = [
        "--steps-per-epoch",
        str(STEPS_OF_AN_EPOCH),
        "--epochs",
        str(-(-steps // STEPS_OF_AN_EPOCH)),
    ]
    return [sys.executable, str(SCRIPT), *SMALL, *size]


class Run:
    """The script under `walrecover run`, with what it prints in a file."""

    def __init__(
        self, folder: Path, steps: int, group: Path | None, standby: str = "imported"
    ) -> None:
        self.folder, self.run = folder, RunDir(folder / "runs", "kills")
        self.fault, self.slow, self.log = folder / "fault", folder / "slow", folder / "log"
        options = ["--name", "kills", "--dir", str(self.run.root), "--every", "3steps"]
        options += ["--max-restarts", "20", "--backoff", "0", "--hang-timeout", HANGS]
        chunks = {} if group is None else {"HOG_CHUNKS": str(2 * LIMIT_BYTES // (64 << 20))}

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "walrecover.cli", "run", *options, "--standby", standby,
                 "--", *command(steps)],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "FAULT": str(self.fault), "PYTHONPATH": PATH, **chunks},
                preexec_fn=enter,
            )  # fmt: skip

    def standby_waits(self) -> bool:
        with contextlib.suppress(OSError):
            own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in own.split()]
            return "walrecover-wait" in names
        return False

    def weights(self) -> str:
        found = re.findall(r"weights sha256 ([0-9a-f]{64})", self.log.read_text(errors="replace"))
        return found[-1] if found else "none"

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def strike(self, how: str, pid: int) -> None:
        if how in ("memory", "exception"):
            draft = self.fault.with_name("draft")
            draft.write_text(how)
            draft.rename(self.fault)
        else:
            os.kill(pid, signal.Signals[how])

    def events(self) -> Iterator[Any]:
        for stream, path in find_streams(self.run.journal):
            if stream.writer == "supervisor":
                with Reader(path, stream) as reader:
                    yield from (event for _, event in reader.read())


def torture(run: Run, plan: Plan) -> list[str]:
    """Make the kills, one after each restart, for so long; what they were."""
    watch, chance = Watch(run.run, run.process.pid), random.Random(plan.seed)
    made: list[str] = []
    struck, furthest = 0, 0
    began = time.monotonic()
    deadline = time.monotonic() + STALL_SECONDS
    while len(made) < plan.kills and time.monotonic() - began < plan.seconds:
        if run.process.poll() is not None:
            raise Failed(f"the run ended after {len(made)} kills\n{run.tail()}")
        if time.monotonic() > deadline:
            raise Failed(f"the run stands still after {len(made)} kills\n{run.tail()}")
        attempt = watch.attempt()
        reading = attempt.read(0) if attempt else None
        if attempt is None or reading is None or attempt.number <= struck:
            time.sleep(0.02)
            continue
        if reading.step <= furthest or reading.phase != "training":
            time.sleep(0.005)
            continue
        run.slow.touch()
        patience = time.monotonic() + (plan.patience if chance.random() < plan.warm else 0.0)
        while not run.standby_waits() and time.monotonic() < patience and attempt.alive:
            time.sleep(0.02)
        run.slow.unlink()
        time.sleep(chance.random() * 0.4)
        how = chance.choices(list(HOW), list(HOW.values()))[0]
        furthest = attempt.read(0).step
        if not attempt.alive:
            continue
        run.strike(how, attempt.ranks[0].process.pid)
        made.append(how)
        print(f"{time.monotonic() - began:7.1f} s  {how} at step {furthest}", file=sys.stderr)
        struck, deadline = attempt.number, time.monotonic() + STALL_SECONDS
    watch.close()
    return made


@contextlib.contextmanager
def limited() -> Iterator[Path | None]:
    """A cgroup whose memory ends, where we may make one."""
    group = MEMORY / f"walrecover-kills-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def undisturbed(folder: Path, steps: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(steps), cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "FAULT": str(folder / "none"), "WALRECOVER_MODE": "disabled",
             "PYTHONPATH": PATH},
    )  # fmt: skip


def files_in_memory() -> set[str]:
    """Folders there are other tests'."""
    return {entry.name for entry in os.scandir(SHARED) if entry.is_file()}


def left_in_memory(before: set[str]) -> list[str]:
    """Files in /dev/shm that came and do not go."""
    until = time.monotonic() + PATIENCE_SECONDS
    left = files_in_memory() - before
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left &= files_in_memory()
    return sorted(left)


def left_running(mark: str) -> list[str]:
    """Processes that carry this in their environment, after a while to end in."""
    until = time.monotonic() + PATIENCE_SECONDS
    while left := [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _has(pid, mark)]:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return left


def _has(pid: str, mark: str) -> bool:
    with contextlib.suppress(OSError):
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def campaign(plan: Plan, folder: Path, group: Path | None) -> dict[str, Any]:
    """All of it; what came of it. Raises Failed."""
    steps = plan.kills * plan.steps
    before = files_in_memory()
    calm = undisturbed(folder, steps)
    run = Run(folder, steps, group, plan.standby)
    try:
        made = torture(run, plan)
        code = run.process.wait(END_SECONDS)
        said, _ = calm.communicate(timeout=END_SECONDS)
    finally:
        if run.process.poll() is None:
            for _ in range(2):
                run.process.send_signal(signal.SIGINT)
                time.sleep(0.5)
            run.process.wait(60)
        calm.kill()
        calm.communicate()
    if code:
        raise Failed(f"the run ended with {code}\n{run.tail()}")
    starts = collections.Counter(
        event.standby or "cold" for event in run.events() if isinstance(event, WorkerStarted)
    )
    causes = collections.Counter(e.cause for e in run.events() if isinstance(e, WorkerExited))
    weights = said.split()[-1]
    return {
        "asked": plan.kills,
        "kills": dict(sorted(collections.Counter(made).items())),
        "attempts": sum(starts.values()),
        "starts": dict(sorted(starts.items())),
        "causes": dict(sorted(causes.items())),
        "memory": "cgroup" if group else "MemoryError",
        "steps": steps,
        "identical": run.weights() == weights,
        "weights": weights,
        "left_running": left_running(f"FAULT={run.fault}"),
        "left_in_dev_shm": left_in_memory(before),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--minutes", type=float, default=24 * 60, help="for the kills, at most")
    parser.add_argument("--standby", default="imported", choices=["off", "imported", "parked"])
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, limited() as group:
        plan = Plan(args.kills, args.seed, args.standby, seconds=60 * args.minutes)
        counts = campaign(plan, Path(name), group)
    report.write("kills", counts, args.seed, began)
    good = counts["identical"] and not counts["left_running"] and not counts["left_in_dev_shm"]
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
