"""What a command is told: the environment variables by which its workers find run and attempt.

Owns their names and forms on the supervisor's side; must not decide what they say.
"""

from __future__ import annotations

from walrecover.entries import AttemptEntry
from walrecover.rundir import RunDir


def of_run(run: RunDir, every: str | None) -> dict[str, str]:
    """The same for all attempts. How to begin was decided for the first one by the supervisor;
    attempts after it, torchrun's own included, always resume."""
    told = {
        "WALRECOVER_DIR": str(run.root),
        "WALRECOVER_RUN": run.name,
        "WALRECOVER_RESUME": "auto",
    }
    if every is not None:
        told["WALRECOVER_EVERY"] = every
    if run.journal_root is not None:
        told["WALRECOVER_JOURNAL_DIR"] = str(run.journal_root)
    return told


def of_attempt(entry: AttemptEntry) -> dict[str, str]:
    """Which plan to follow, and whose process to watch and to name in further attempts."""
    holder = entry.holder
    return {
        "WALRECOVER_ATTEMPT": f"{entry.number}-{entry.nonce}",
        "WALRECOVER_SUPERVISOR": f"{holder.pid}:{holder.started!r}:{holder.supervisor}",
    }
