"""What a run is set to: the environment before the argument before the default.

Owns WALRECOVER_*; a command line's flags arrive here as environment, set by the supervisor.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from walrecover import pace, stepcounts, stops
from walrecover.errors import BadInput
from walrecover.pace import Every
from walrecover.policy import AFTER_DIVERGENCE, ON_DIVERGENCE
from walrecover.rundir import check_name, default_name, find_root
from walrecover.stepcounts import Take

MEMORY_EVERY = "WALRECOVER_MEMORY_EVERY"
RESUME = ("auto", "must", "never")


class Supervisor(NamedTuple):
    """The process that started this one: its pid and start time, and its id in entries."""

    pid: int
    started: float
    id: str


class Settings(NamedTuple):
    root: Path
    name: str
    journal: Path | None
    every: Every
    resume: str
    keep: int
    changed: str
    attempt: str | None
    supervisor: Supervisor | None
    grace: float | None
    notice: int | None
    take: Take | None = None
    rewinds: bool = False
    keyed: bool = True  # the randomness in loaders' workers
    on_divergence: str = "go_on"
    memory: int | None = None  # steps between captures that are kept in memory


def disabled() -> bool:
    """Whether WALRECOVER_MODE=disabled: the script runs as if walrecover were not there."""
    mode = os.environ.get("WALRECOVER_MODE", "")
    if mode not in ("", "disabled"):
        raise BadInput(f"WALRECOVER_MODE is {mode!r}: the only mode to set is 'disabled'")
    return mode == "disabled"


def read(
    name: str | None, directory: str | os.PathLike[str] | None, every: str | None, resume: str
) -> Settings:
    """Raises BadInput for values that cannot be used."""
    env = os.environ
    root = find_root(env.get("WALRECOVER_DIR") or directory)
    chosen = env.get("WALRECOVER_RUN") or name
    how = env.get("WALRECOVER_RESUME") or resume
    if int(env.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0:
        how = "auto"  # torchrun restarts its workers with the environment of the first start
    if how not in RESUME:
        raise BadInput(f"resume is {how!r}: it is one of {', '.join(RESUME)}")
    keep = env.get("WALRECOVER_KEEP") or "3"
    if not keep.isdigit() or int(keep) < 2:
        raise BadInput(f"WALRECOVER_KEEP is {keep!r}: keep a whole number of snapshots, from 2")
    changed = env.get("WALRECOVER_CHANGED") or "show"
    if changed not in ("show", "error"):
        raise BadInput(f"WALRECOVER_CHANGED is {changed!r}: it is 'show' or 'error'")
    seeds = env.get("WALRECOVER_WORKER_SEEDS") or "keyed"
    if seeds not in ("keyed", "own"):
        raise BadInput(f"WALRECOVER_WORKER_SEEDS is {seeds!r}: it is 'keyed' or 'own'")
    divergence = env.get(ON_DIVERGENCE) or "go_on"
    if divergence not in AFTER_DIVERGENCE:
        raise BadInput(f"WALRECOVER_ON_DIVERGENCE is {divergence!r}: it is 'go_on' or 'stop'")
    journal = env.get("WALRECOVER_JOURNAL_DIR")
    memory = env.get(MEMORY_EVERY)
    return Settings(
        root=root,
        name=check_name(chosen) if chosen else name_of_this_process(),
        journal=Path(journal).absolute() if journal else None,
        every=pace.parse(env.get("WALRECOVER_EVERY") or every or pace.DEFAULT),
        resume=how,
        keep=int(keep),
        changed=changed,
        attempt=env.get("WALRECOVER_ATTEMPT") or None,
        supervisor=_supervisor(env.get("WALRECOVER_SUPERVISOR")),
        grace=stops.seconds(grace) if (grace := env.get(stops.GRACE)) else None,
        notice=stops.notice(env.get(stops.PREEMPT_SIGNAL) or stops.NOTICES[0]),
        take=stepcounts.parse(take) if (take := env.get("WALRECOVER_TAKE_RANK")) else None,
        rewinds=env.get("WALRECOVER_ON_NUMERIC") == "rewind",
        keyed=seeds == "keyed",
        on_divergence=divergence,
        memory=pace.parse_memory(memory) if memory else None,
    )


def _supervisor(text: str | None) -> Supervisor | None:
    if not text:
        return None
    try:
        pid, started, identity = text.split(":")
        return Supervisor(int(pid), float(started), identity)
    except ValueError:
        raise BadInput(
            f"WALRECOVER_SUPERVISOR is {text!r}: only 'walrecover run' sets it, unset it"
        ) from None


def name_of_this_process() -> str:
    """The same command is the same run: by directory, script and arguments."""
    script = sys.argv[0] or "interactive"
    where = os.path.abspath(script) if os.path.exists(script) else script
    return default_name(os.getcwd(), where, sys.argv[1:])
