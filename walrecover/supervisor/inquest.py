"""What is known of processes that hang, written down before any of them is ended.

Owns the artefacts of a hang: of every rank the Python stacks (py-spy where it is installed,
faulthandler otherwise) and, of every process of the command, the kernel's own word. Must not
decide who hangs, and ends nothing.

What is stopped is continued only after its state was read: a handler runs then, and not before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from walrecover import stacks
from walrecover.blame import Condition
from walrecover.processes import descendants

PATIENCE_SECONDS = 5.0
"""With one look at all ranks."""

_QUIET_SECONDS = 0.25
_POLL_SECONDS = 0.05

Pause = Callable[[float], object]
"""Waits so many seconds, and hears signals meanwhile."""


class Inquest:
    """One look at the ranks (rank to pid) of the attempt whose folder is `meeting`."""

    def __init__(self, meeting: Path, ranks: Mapping[int, int], pause: Pause) -> None:
        self._meeting, self._pause = meeting, pause
        there = {rank: pid for rank, pid in ranks.items() if os.path.exists(f"/proc/{pid}")}
        self._ranks = dict(sorted(there.items()))  # they are given in the order they began
        self._kernel: dict[int, str] = {}
        self._stacks: dict[int, str] = {}
        self.conditions: dict[int, Condition] = {}

    def hold(self) -> None:
        """Look: the kernel first, for asking changes what it says."""
        self._tree = [seen.pid for seen in descendants(os.getpid())]
        self._kernel = {pid: kernel_state(pid) for pid in self._tree}
        states = {rank: state_of(pid) for rank, pid in self._ranks.items()}
        self._spy()
        self._ask({rank: pid for rank, pid in self._ranks.items() if rank not in self._stacks})
        for rank, state in states.items():
            self.conditions[rank] = stacks.read(self._stacks.get(rank, ""), state)

    def write(self, folder: Path, reason: str) -> list[Path]:
        """One file for each rank, one for the other processes. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for rank, pid in self._ranks.items():
            stack = self._stacks.get(rank) or "no Python stacks: the process did not answer\n"
            body = f"{reason}\n\nrank {rank}, pid {pid}\n\n{stack}\n{self._kernel.get(pid, '')}"
            written.append(_written(folder / f"rank-{rank:05d}.txt", body))
        others = [pid for pid in self._tree if pid not in self._ranks.values()]
        if others:
            body = "\n".join([reason, "", *(self._kernel[pid] for pid in others)])
            written.append(_written(folder / "processes.txt", body))
        return written

    def _spy(self) -> None:
        """py-spy reads the other process's memory, without its help and without stopping it: what
        hangs does not move."""
        tool = shutil.which("py-spy")
        if tool is None:
            return
        started = {
            rank: subprocess.Popen(
                [tool, "dump", "--nonblocking", "--pid", str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
            for rank, pid in self._ranks.items()
        }
        until = time.monotonic() + PATIENCE_SECONDS
        for rank, process in started.items():
            try:
                said, _ = process.communicate(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                continue
            if "Thread " in said:
                self._stacks[rank] = said

    def _ask(self, ranks: Mapping[int, int]) -> None:
        """faulthandler, in the processes themselves. A stopped one writes once it is continued."""
        before = {rank: _size(stacks.path_of(self._meeting, rank)) for rank in ranks}
        asked = {rank for rank, pid in ranks.items() if stacks.ask(pid)}
        for rank in asked:
            with contextlib.suppress(OSError):
                os.kill(ranks[rank], signal.SIGCONT)
        until = time.monotonic() + PATIENCE_SECONDS
        sizes, quiet = dict(before), 0.0
        while time.monotonic() < until and asked and quiet < _QUIET_SECONDS:
            self._pause(_POLL_SECONDS)
            now = {rank: _size(stacks.path_of(self._meeting, rank)) for rank in ranks}
            complete = all(now[rank] > before[rank] for rank in asked)
            quiet = quiet + _POLL_SECONDS if complete and now == sizes else 0.0
            sizes = now
        for rank in asked:
            with contextlib.suppress(OSError):
                text = stacks.path_of(self._meeting, rank).read_bytes()[before[rank] :]
                self._stacks[rank] = text.decode(errors="replace")


def _written(path: Path, body: str) -> Path:
    path.write_text(body)
    return path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def state_of(pid: int) -> str:
    """R, S, D, T, …; empty where the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return text[text.rindex(")") + 2]


def tracer_of(pid: int) -> int:
    """The pid of a debugger that is attached; 0 for none."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def kernel_state(pid: int) -> str:
    """What the kernel says of a process and of each of its threads."""
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":\t", 1) for line in _read(folder / "status").splitlines() if ":\t" in line
    )
    name, state = status.get("Name", "?"), status.get("State", "gone")
    lines = [f"pid {pid} ({name}): {state}, {status.get('VmRSS', '0 kB').strip()} resident"]
    try:
        threads = sorted(os.listdir(folder / "task"), key=int)
    except OSError:
        threads = []
    for thread in threads:
        lines.append(_thread(folder / "task" / thread))
    stack = _read(folder / "stack").strip()
    if stack:
        lines += ["  in the kernel:", *(f"    {line}" for line in stack.splitlines())]
    return "\n".join(lines) + "\n"


def _thread(folder: Path) -> str:
    fields = _read(folder / "stat").rpartition(")")[2].split()
    state = fields[0] if fields else "?"
    spent = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0
    name, where = _read(folder / "comm").strip(), _read(folder / "wchan").strip()
    call = _read(folder / "syscall").split()
    return (
        f"  thread {folder.name} ({name}): {state}, {spent:.2f} s of CPU, "
        f"wchan {where or '?'}, syscall {call[0] if call else '?'}"
    )


def _read(path: Path) -> str:
    """Empty where it cannot be read: another user's, or gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
