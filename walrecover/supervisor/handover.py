"""What a command is told: the environment variables by which its workers find run and attempt.

Owns their names and forms on the supervisor's side; must not decide what they say.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

from walrecover import stops
from walrecover.entries import AttemptEntry
from walrecover.policy import ON_DIVERGENCE, Policy
from walrecover.rundir import RunDir

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
PER_ATTEMPT = (ERROR_FILE, "WALRECOVER_ATTEMPT", "WALRECOVER_SUPERVISOR")
"""What `of_attempt` tells; everything else is the same for all attempts."""


def of_run(run: RunDir, every: str | None, memory: str | None = None) -> dict[str, str]:
    """The same for all attempts. How to begin was decided for the first one by the supervisor;
    attempts after it, torchrun's own included, always resume."""
    told = {
        "WALRECOVER_DIR": str(run.root),
        "WALRECOVER_RUN": run.name,
        "WALRECOVER_RESUME": "auto",
    }
    if every is not None:
        told["WALRECOVER_EVERY"] = every
    if memory is not None:
        told["WALRECOVER_MEMORY_EVERY"] = memory
    if run.journal_root is not None:
        told["WALRECOVER_JOURNAL_DIR"] = str(run.journal_root)
    return told


def of_stops(grace: float, notice: int | None) -> dict[str, str]:
    """How long a stop may take, and what announces one."""
    name = "none" if notice is None else signal.Signals(notice).name
    return {stops.GRACE: f"{grace:g}s", stops.PREEMPT_SIGNAL: name}


def of_policy(policy: Policy) -> dict[str, str]:
    """What the sessions do by the policy: end the attempt for a loss that is not finite, or rises,
    where it goes back for that; and end the run where a resume has diverged, if it stops for that.
    What the policy leaves as it is by default the environment may say."""
    told: dict[str, str] = {"WALRECOVER_ON_NUMERIC": policy.of("numeric").action}
    if policy.on_divergence != "go_on":
        told[ON_DIVERGENCE] = policy.on_divergence
    return told


def of_attempt(entry: AttemptEntry, folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Which plan to follow, whose process to watch and to name in further attempts, and, unless
    somebody has said it already, where torchrun leaves the error of the worker that failed first.
    """
    holder = entry.holder
    return {
        ERROR_FILE: environ.get(ERROR_FILE) or str(folder / "error.json"),
        "WALRECOVER_ATTEMPT": f"{entry.number}-{entry.nonce}",
        "WALRECOVER_SUPERVISOR": f"{holder.pid}:{holder.started!r}:{holder.supervisor}",
    }
