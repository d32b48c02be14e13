"""How a stop is asked for, how long it may take, and what follows it: the words of the options.

Owns reading `--grace`, `--preempt-signal` and `--on-preempt`, which the command line and the
training process share through the environment.
"""

from __future__ import annotations

import re
import signal

from walrecover.errors import BadInput

GRACE, PREEMPT_SIGNAL, ON_PREEMPT = (
    "WALRECOVER_GRACE",
    "WALRECOVER_PREEMPT_SIGNAL",
    "WALRECOVER_ON_PREEMPT",
)
AFTERWARDS = ("exit", "stay", "requeue", "again")
NOTICES = ("USR1", "USR2", "TERM")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m)?")


def seconds(text: str) -> float:
    """`25s`, `2m` or `25`. Raises BadInput."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise BadInput(f"--grace {text!r}: give a time, such as 25s or 2m")
    return float(match[1]) * (60.0 if match[2] == "m" else 1.0)


def notice(text: str) -> int | None:
    """The signal by which a cluster says that it will take the machine away; None for "none"."""
    name = text.strip().upper().removeprefix("SIG")
    if name == "NONE":
        return None
    if name not in NOTICES:
        raise BadInput(f"--preempt-signal {text!r}: it is one of {', '.join(NOTICES)}, or none")
    return int(signal.Signals[f"SIG{name}"])
