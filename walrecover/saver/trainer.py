"""What the saver knows of the process that fills its slots: is it alive, busy, and how did it end.

Owns the looks at it. It is no child of the saver's: its end is told by a pidfd, and how it ended by
/proc while nobody has waited for it, then by the pidfd itself (Linux 6.15).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import threading
import time
from pathlib import Path

_PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, 64 bytes)
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_CODE_AT = 60
_SCRIBBLING = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)
BUSY_SHARE = 0.2
WINDOW_SECONDS = 0.01


class Trainer:
    """The training process, by a pidfd."""

    def __init__(self, pidfd: int) -> None:
        self.pidfd = pidfd
        self.pid = _pid_of(pidfd)
        self._status: int | None = None
        self._ended = self.pid <= 0
        self._lock = threading.Lock()
        self._looked, self._used, self._busy = time.monotonic(), self._cpu(), True

    @property
    def lives(self) -> bool:
        with self._lock:  # its status is there to be read only until somebody waits for it
            if not self._ended and _is_readable(self.pidfd):
                self._status = _status_in_proc(self.pid)
                self._ended = True
            return not self._ended

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, at most so long."""
        return _is_readable(self.pidfd, seconds)

    @property
    def is_trusted(self) -> bool:
        """Whether what it left behind in memory may be used as it lies there: not where it died of
        its own doing, nor where nobody can tell."""
        if self.lives:
            return True
        if self._status is None:
            self._status = _status_of(self.pidfd)
        if self._status is None:
            return False
        return not os.WIFSIGNALED(self._status) or os.WTERMSIG(self._status) not in _SCRIBBLING

    @property
    def ending(self) -> str:
        """In words."""
        if self._status is None:
            return "ended, and nobody can tell how"
        if os.WIFSIGNALED(self._status):
            return f"was ended by {signal.Signals(os.WTERMSIG(self._status)).name}"
        return f"ended with exit code {os.WEXITSTATUS(self._status)}"

    def is_busy(self) -> bool:
        """Whether it used its processors in the last hundredth of a second: what is done beside it
        then must leave room."""
        if not self.lives:
            return False
        now = time.monotonic()
        if now - self._looked >= WINDOW_SECONDS:
            used = self._cpu()
            self._busy = used - self._used > BUSY_SHARE * (now - self._looked)
            self._looked, self._used = now, used
        return self._busy

    def _cpu(self) -> float:
        """Seconds of processor time of all its threads: the clock that its pid names."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0


def _pid_of(pidfd: int) -> int:
    """-1 where it has ended and was waited for."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value)
    return -1


def _is_readable(fd: int, seconds: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _status_in_proc(pid: int) -> int | None:
    """The wait status of a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[-1]) if fields[0] in "ZX" else None


def _status_of(pidfd: int) -> int | None:
    """The wait status of a process that was waited for."""
    info = bytearray(64)
    struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    if not struct.unpack_from("=Q", info, 0)[0] & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("=i", info, _EXIT_CODE_AT)[0])
