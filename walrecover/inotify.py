"""What tells of files that come and go: watchdog's observer, without words that concern nobody.

Owns how it is made; what is watched, and what an event means, is its user's.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from watchdog.observers import Observer

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver


def observer() -> BaseObserver:
    """An observer that is not started yet.

    A folder that appears while its parent's are being gone through is asked for twice, and watchdog
    (from 7.0) warns of that: the kernel gives the same watch both times, so nothing is missed.
    """
    warnings.filterwarnings(
        "ignore", message="Callback with id", category=RuntimeWarning, module=r"watchdog\."
    )
    return Observer()
