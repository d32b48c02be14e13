"""The data ledger of a run, in a sentence: what `walrecover audit` finds.

An audit reads whole journals, so it is a process of its own, at idle priority, one at a time, and
its answer is kept until the run has moved on. Must not be waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec

PATIENCE_SECONDS = 120.0
MOST = 64


class Ledgers:
    """`found` is told of a run whose ledger is known now."""

    def __init__(
        self, journal: str | None = None, found: Callable[[int], None] = lambda run: None
    ) -> None:
        self._journal, self._found = journal, found
        self._lock = threading.Lock()
        self._known: dict[int, tuple[int, str]] = {}
        self._busy = False
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def of(self, run: dict[str, Any]) -> str:
        """What is known; asks for what is not, and does not wait."""
        number, step = run["id"], run["last_step"] or 0
        with self._lock:
            known = self._known.get(number)
            if known is None or known[0] != step:
                self._begin(run, number, step)
        if known is None:
            return "being audited: look again in a moment"
        at, said = known
        return said if at == step else f"{said} (as of step {at})"

    def _begin(self, run: dict[str, Any], number: int, step: int) -> None:
        if self._busy:
            return
        self._busy = True
        work = threading.Thread(target=self._audit, args=(run, number, step), daemon=True)
        work.start()

    def _audit(self, run: dict[str, Any], number: int, step: int) -> None:
        said = "could not be audited"
        try:
            said = _said(self._ask(run))
        except (OSError, subprocess.SubprocessError, msgspec.DecodeError, LookupError):
            pass
        finally:
            with self._lock:
                while len(self._known) >= MOST:
                    del self._known[next(iter(self._known))]
                self._known[number] = step, said
                self._busy = False
            self._found(number)

    def _ask(self, run: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", "walrecover.cli", "audit", "--json"]
        journal = ["--journal-dir", self._journal] if self._journal else []
        child = subprocess.Popen(
            [*command, "--dir", run["root"], *journal, "--", run["name"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with child:
            self._child = child
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)
            try:
                if self._closed:
                    child.kill()
                told, _ = child.communicate(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
            finally:
                self._child = None
        found: dict[str, Any] = msgspec.json.decode(told, type=dict)
        return found

    def close(self) -> None:
        """No audit outlives the daemon."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()


def _said(audit: dict[str, Any]) -> str:
    if "error" in audit:
        return f"cannot be audited: {audit['error']['message']}"
    passes = audit["passes"]
    consumed = sum(each["consumed"] for each in passes)
    text = {
        "ok": "every position was consumed exactly once",
        "violated": "the surviving history did not consume every position exactly once",
    }.get(audit["verdict"], "not proved")
    count = (
        f"{consumed} positions in {len(passes)} {'pass' if len(passes) == 1 else 'passes'}"
        if passes
        else "no data was read in loops"
    )
    missing = f"; {audit['unproven'][0]}" if audit["unproven"] else ""
    return f"{text}: {count}{missing}"
