"""Stacks of a rank's process: prepared by itself, asked for by whoever watches it.

Owns the file, the signal and the reading of what comes. Nothing is sent to a process that did not
prepare for it: the signal would end it. faulthandler's handler is C and needs no interpreter
lock, so that a process stuck in native code with the lock held still answers. One that is stopped
answers once it is continued, one in an uninterruptible wait by another of its threads (the journal
has one).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
from pathlib import Path

from walrecover.blame import Condition

SIGNAL = signal.SIGRTMAX - 2
"""Real-time, so that scripts, launchers and debuggers do not have it by accident."""

_WAITING = re.compile(r"torch/distributed/|torch/nn/parallel/|_engine_run_backward")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$')
_SPIED = re.compile(r"^\s+(?P<function>\S.*) \((?P<file>[^()]+):(?P<line>\d+)\)$")
_THREAD = re.compile(r"^(?:Current thread|Thread) ")
_ours: list[int] = []


def path_of(folder: Path, rank: int) -> Path:
    """Where a rank of this attempt writes its stacks. The folder goes with the attempt: what is
    to be kept is copied from there."""
    return folder / f"rank-{rank:05d}.stacks"


def prepare(folder: Path, rank: int) -> None:
    """Have this process write its stacks there when it is asked to. A signal that the script uses
    itself is left alone, and a disk that refuses costs nothing but the stacks."""
    if signal.getsignal(SIGNAL) is not signal.SIG_DFL:
        return
    with contextlib.suppress(OSError, RuntimeError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path_of(folder, rank), flags, 0o600)
        faulthandler.register(SIGNAL, file=fd, all_threads=True)
        while _ours:
            os.close(_ours.pop())
        _ours.append(fd)


def is_prepared(pid: int) -> bool:
    """Whether that process has a handler for the signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (SIGNAL - 1) & 1)


def ask(pid: int) -> bool:
    """Ask a process for its stacks; False where it did not prepare."""
    if not is_prepared(pid):
        return False
    try:
        os.kill(pid, SIGNAL)
    except OSError:
        return False
    return True


def read(text: str, state: str) -> Condition:
    """What the stacks say of the main thread: py-spy's format, or faulthandler's."""
    frames = _main_thread(text)
    if not frames:
        return Condition(state)
    own = next((n for n, frame in enumerate(frames) if not _is_library(frame["file"])), 0)
    where = "{file} line {line} in {function}".format(**frames[own])
    # Only what the script's own innermost frame has called: its model may run inside a wrapper's.
    waits = any(_WAITING.search("{file} {function}".format(**frame)) for frame in frames[:own])
    return Condition(state, waits, where)


def _is_library(path: str) -> bool:
    return "-packages/" in path or "/lib/python" in path or path.startswith("<")


def _main_thread(text: str) -> list[dict[str, str]]:
    """Its frames, innermost first: py-spy names it, faulthandler lists it last."""
    threads: list[tuple[str, list[dict[str, str]]]] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            threads.append((line, []))
        elif threads and (found := _FRAME.match(line) or _SPIED.match(line)):
            threads[-1][1].append(found.groupdict())
    named = [frames for line, frames in threads if "MainThread" in line]
    return (named or [frames for _, frames in threads] or [[]])[-1]
