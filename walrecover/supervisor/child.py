"""The command's own process: found, started and told.

Owns how a command becomes a direct child and how its end reads; must not wait for it, restart it
or know why it is signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from walrecover.errors import WalrecoverError
from walrecover.processes import die_with_parent
from walrecover.supervisor.signals import Signals

CANNOT_EXECUTE, NOT_FOUND = 126, 127


class Unusable(WalrecoverError):
    """The command cannot be run. `exit_code` is what a shell would end with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class Command(NamedTuple):
    """What to start, and all that it is given. `descriptors`: beyond the first three."""

    argv: tuple[str, ...]
    executable: str
    environ: Mapping[str, str]
    descriptors: tuple[int, ...]

    @classmethod
    def find(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Command:
        """Raises Unusable. To be called before anything is opened here: a descriptor that an exec
        would not close is then one that whoever started us meant for the command."""
        return cls(tuple(argv), _locate(argv[0], environ), environ, _inheritable())

    def told(self, more: Mapping[str, str]) -> Command:
        return self._replace(environ={**self.environ, **more})


def _inheritable() -> tuple[int, ...]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return tuple(found)


def _locate(command: str, environ: Mapping[str, str]) -> str:
    """The file that this command means, as a shell finds it. Raises Unusable."""
    if "/" in command:
        candidates = [command]
    else:
        candidates = [os.path.join(folder, command) for folder in os.get_exec_path(environ)]
    refused = ""
    for candidate in candidates if command else ():
        try:
            mode = os.stat(candidate).st_mode
        except OSError as error:
            if isinstance(error, PermissionError):
                refused = refused or "permission denied"
            continue
        if stat.S_ISDIR(mode):
            refused = refused or ("is a directory" if "/" in command else "")
        elif os.access(candidate, os.X_OK):
            return candidate
        else:
            refused = "not executable"
    if refused:
        raise Unusable(f"{command}: {refused}", CANNOT_EXECUTE)
    what = "no such file" if "/" in command else "command not found"
    raise Unusable(f"{command or repr(command)}: {what}", NOT_FOUND)


class Ending(NamedTuple):
    """How a process ended: one of the two is set."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def of(cls, status: int) -> Ending:
        code = os.waitstatus_to_exitcode(status)
        return cls(code=code) if code >= 0 else cls(signal=-code)

    @property
    def exit_code(self) -> int:
        """As a shell reports it."""
        return 128 + self.signal if self.signal is not None else self.code or 0

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


class Child:
    """A started command. `ending` is None until the loop, which reaps, has set it; `peak`: the
    bytes that the largest of its processes held."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.ending: Ending | None = None
        self.peak = 0

    def note_end(self, pid: int, status: int, peak: int) -> None:
        """Take a reaped child's status, if it is this one's."""
        self.peak = max(self.peak, peak)
        if pid == self.pid:
            self.ending = Ending.of(status)
            self._process.returncode = os.waitstatus_to_exitcode(status)

    def send(self, number: int) -> None:
        """Signal the command's own process; what it started hears of it from there."""
        if self.ending is None:  # not reaped, so the pid is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def start(command: Command, signals: Signals) -> Child:
    """Start the command. Raises Unusable where the kernel refuses the file.

    It gets a process group of its own, so that the terminal's Ctrl-C reaches only us, who pass it
    on; a background group must not read from the terminal, so stdin is then /dev/null. Output is
    inherited untouched: nothing is buffered here.
    Called from the main thread: PDEATHSIG fires when the thread that forked ends.
    """
    supervisor = os.getpid()

    def before_exec() -> None:
        signals.forget_in_child()
        die_with_parent(supervisor)

    with signals.held_back():
        try:
            process = subprocess.Popen(
                command.argv,
                executable=command.executable,
                env=command.environ,
                stdin=subprocess.DEVNULL if _reads_terminal() else None,
                process_group=0,
                pass_fds=command.descriptors,  # and not what LMDB leaves open
                preexec_fn=before_exec,
            )
        except OSError as error:
            missing = isinstance(error, FileNotFoundError) and not Path(command.executable).exists()
            code = NOT_FOUND if missing else CANNOT_EXECUTE
            raise Unusable(f"{command.argv[0]}: {error.strerror}", code) from None
    return Child(process)


def _reads_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False
