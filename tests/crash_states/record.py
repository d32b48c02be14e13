"""Runs a program under strace and keeps what is needed to read its file operations.

Owns: the strace command line, the program's environment, and the trees before and after. It must
not interpret what was recorded.

The program runs in the root. What it acknowledges it writes, a line each, to the file named by
the environment variable CRASH_STATES_ACK, which lies outside the root:

    fd = os.open(os.environ["CRASH_STATES_ACK"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"committed 7\\n")
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Tree = Mapping[str, bytes | None]

LONGEST_WRITE = 4 << 20
_NAMES = """open openat creat mkdir mkdirat rename renameat renameat2 link linkat symlink symlinkat
unlink unlinkat rmdir chdir fchdir"""
_CONTENTS = """write pwrite64 writev pwritev pwritev2 lseek truncate ftruncate fallocate
copy_file_range sendfile fsync fdatasync sync syncfs sync_file_range msync mmap io_uring_setup"""
_DESCRIPTORS = "close close_range dup dup2 dup3 fcntl ioctl clone clone3 fork vfork execve"


class RecordError(Exception):
    """The program could not be recorded, or failed while it was."""


@dataclass(frozen=True, slots=True)
class Recording:
    root: Path
    trace: Path
    ack: Path
    before: Tree
    after: Tree
    returncode: int
    output: str


def record(
    argv: Sequence[str],
    root: Path,
    work: Path,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    extra: Sequence[str] = (),
    check: bool = True,
) -> Recording:
    """Runs `argv` with the root as its working directory; returns when all its processes ended.

    `root` may hold files already: they count as durable. `work`, outside the root, takes the
    trace. `env` is added to this process's environment. `extra` names more system calls to
    follow: "read" where a program writes at the offset that its reads have moved.
    """
    root, work = root.resolve(), work.resolve()
    if work.is_relative_to(root):
        raise RecordError(f"{work} lies inside the root {root}")
    work.mkdir(parents=True, exist_ok=True)
    trace, ack = work / "trace", work / "ACK"
    ack.write_bytes(b"")
    before = read_tree(root)
    status, output = _run(
        [*_strace(trace, extra), *argv],
        root,
        {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CRASH_STATES_ACK": str(ack), **(env or {})},
        timeout,
    )
    if check and status != 0:
        raise RecordError(f"{argv} returned {status}:\n{output[-4000:]}")
    return Recording(root, trace, ack, before, read_tree(root), status, output)


def _strace(trace: Path, extra: Sequence[str]) -> list[str]:
    program = shutil.which("strace")
    if program is None:
        raise RecordError("strace is not installed")
    # A question mark lets strace pass over a call that the architecture lacks.
    names = [f"?{name}" for name in f"{_NAMES} {_CONTENTS} {_DESCRIPTORS}".split()]
    return [
        program, "--seccomp-bpf", "-f", "-y", "-qq", "-xx", "-s", str(LONGEST_WRITE),
        "-e", "abbrev=execve", "-e", f"trace={','.join([*names, *extra])}", "-o", str(trace),
    ]  # fmt: skip


def _run(command: list[str], cwd: Path, env: Mapping[str, str], timeout: float) -> tuple[int, str]:
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise RecordError(f"not done after {timeout} s:\n{output[-4000:]}") from None
    return process.returncode, output


def read_tree(root: Path) -> dict[str, bytes | None]:
    """Every file's bytes and None for a directory, by path below the root."""
    tree: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise RecordError(f"neither a file nor a directory: {path}")
        tree[str(path.relative_to(root))] = None if path.is_dir() else path.read_bytes()
    return tree
