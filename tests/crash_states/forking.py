"""The program whose crash states a fork can leave: it makes one, and acknowledges it.

Owns: the parent run, the fork, and what must be found in every crash state of it: the parent as it
was, and the fork whole, or not there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.protocol import Launch, candidates, check_state, holder
from tests.support.reading import OPENED, step_of
from walrecover import entries as model
from walrecover.errors import WalrecoverError
from walrecover.fork import fork
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

from .workload import ROOT, acknowledge

AT, SKIP = 4, (40, 48)


def parent_below(directory: Path) -> RunDir:
    return RunDir(directory / ROOT, "parent")


def train(directory: Path) -> None:
    """The parent: steps 1 to 6, with snapshots of 2, 4 and 6."""
    with Launch.begin(parent_below(directory)) as launch:
        for journal in launch.journals:
            journal.append(OPENED)
        while launch.step < 6:
            launch.step += 1
            for rank, journal in enumerate(launch.journals):
                journal.append(step_of(launch.step, rank))
            if launch.step % 2 == 0:
                launch.save()


def check(directory: Path, acks: tuple[str, ...]) -> str | None:
    """What is wrong with this state, or None."""
    parent = parent_below(directory)
    refs = candidates(parent)
    if [ref.step for ref in refs] != [6, 4, 2]:
        return f"the parent has {refs}"
    for ref in refs:
        check_state(parent, ref)
    if list_runs(parent.root) == ["parent"]:
        return "the fork was acknowledged, and is gone" if acks else None
    run = parent._replace(name="fork")
    try:
        first = model.origin(Sequence(run.sequence).read())
        plan = begin_attempt(run, holder()).entry.plan
        check_state(run, refs[1])
    except (WalrecoverError, OSError) as error:
        return f"the fork is there, and not whole: {error}"
    if first is None or (plan.base, plan.skips) != (refs[1], first.skips) or not first.skips:
        return f"the fork goes on from {plan}, and its origin is {first}"
    return None


def main() -> None:
    fork(parent_below(Path.cwd()), AT, name="fork", skips=(SKIP,))
    acknowledge("forked")


if __name__ == "__main__":
    sys.exit(main())
