"""What systemd is told: that the daemon is ready, goes round, and ends (sd_notify's protocol).

Owns the socket that NOTIFY_SOCKET names. Without one nothing is said, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """`beat`: seconds between two words that it goes round; None: nobody watches."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Takes its variables out of the environment: they are not meant for children."""
        where, micros, pid = (environ.pop(name, "") for name in VARIABLES)
        self._address = f"\0{where[1:]}" if where.startswith("@") else where
        mine = pid in ("", str(os.getpid()))
        watched = where and mine and micros.isdigit() and int(micros) > 0
        self.beat = int(micros) / 2e6 if watched else None

    def ready(self) -> None:
        self._tell("READY=1")

    def goes_round(self) -> None:
        if self.beat is not None:
            self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to,
        ):
            to.settimeout(1.0)
            to.connect(self._address)
            to.send(text.encode())
