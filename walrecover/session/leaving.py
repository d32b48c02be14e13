"""The way out: how an exception that ends the script is seen.

Owns the hooks (`sys.excepthook`, `threading.excepthook`, `atexit`), chained on what was there and
put back. Nothing is swallowed, replaced or delayed by more than its callers allow; what is done on
the way out is the run's.

An exception that the script catches, and one in a cell of a notebook or at a prompt, ends nothing
and is not seen here. `SystemExit` (`Stopped` is one) never comes through `sys.excepthook`: a script
that turns its exception into an exit code is seen at the end of the process only.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

log = logging.getLogger("walrecover")


class Host(Protocol):
    """What the way out needs of the run."""

    def raised(self, error: BaseException) -> None:
        """An exception ends the script. Called before anybody prints it."""

    def left(self) -> None:
        """The script is over, by that exception. Called after it was printed."""

    def exits(self) -> None:
        """The process ends, by that exception or otherwise."""

    def trains_in(self, thread: int | None) -> bool:
        """Whether the loop runs in this thread."""


class Leaving:
    """The hooks of one run, until `close`."""

    def __init__(self, host: Host) -> None:
        self._host: Host | None = host
        self._owner = os.getpid()
        self._before: Callable[..., Any] = sys.excepthook
        self._before_in_threads: Callable[..., Any] = threading.excepthook
        # Bound methods are made anew at each access: these are the ones to be recognised.
        self._hook, self._thread_hook = self._excepthook, self._threads_excepthook
        sys.excepthook, threading.excepthook = self._hook, self._thread_hook
        atexit.register(self._at_exit)

    def close(self) -> None:
        """Put back what was there. Where somebody has chained on us since, pass on only."""
        if sys.excepthook is self._hook:
            sys.excepthook = self._before
        if threading.excepthook is self._thread_hook:
            threading.excepthook = self._before_in_threads
        atexit.unregister(self._at_exit)
        self._host = None

    def _excepthook(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self._host is not None and error is not None and self._ends_here():
            self._safely(self._host.raised, error)
        self._before(kind, error, trace)
        host = self._host
        if host is not None and self._ends_here() and host.trains_in(threading.get_ident()):
            self._safely(host.left)  # training in another thread may go on: then `exits` is next

    def _threads_excepthook(self, args: Any) -> None:
        """The script may train in a thread of its own; what ends others is not the training's."""
        host, error, thread = self._host, args.exc_value, args.thread and args.thread.ident
        # SystemExit comes here, too: it ends the thread, and says nothing of a failure.
        failed = error is not None and not isinstance(error, SystemExit) and self._ends_here()
        if host is not None and failed and host.trains_in(thread):
            self._safely(host.raised, error)
        self._before_in_threads(args)
        if self._host is not None and failed and self._host.trains_in(thread):
            self._safely(self._host.left)

    def _at_exit(self) -> None:
        if self._host is not None and os.getpid() == self._owner:
            self._safely(self._host.exits)

    def _ends_here(self) -> bool:
        """Not in a forked child, nor where a prompt follows on the exception."""
        prompt = sys.flags.interactive or hasattr(sys, "ps1")
        return os.getpid() == self._owner and not prompt

    def _safely(self, call: Callable[..., None], *given: Any) -> None:
        """Nothing that fails here hides the user's own exception."""
        try:
            call(*given)
        except BaseException as failure:
            log.warning("on the way out: %s: %s", type(failure).__name__, failure)
