"""`make torture-memory`: 100 kills of char_gpt.py with a capture of each step kept in memory.

    make torture-memory ARGS="--kills 10 --seed 7"

The killed run must end with the bits of the undisturbed one, each resume be proven exact, and no
kill lose more than what specs/18-arena.md states: the step it was in, and the one before. How much
was lost is told by the journal (the last step that it holds of an attempt, and the step that the
next one goes on from) and by where the kill met the run (the rank's own page).
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.campaigns.proof import perform
from tests.campaigns.report import ROOT, write
from walrecover import entries
from walrecover.events import RecoveryPlanned
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence

EXAMPLE = (str(ROOT / "examples" / "char_gpt.py"), "--steps-per-epoch", "150", "--epochs", "4")


def rehearse(kills: int, seed: int, folder: Path, every: str, command: list[str]) -> dict[str, Any]:
    """One rehearsal, with snapshots `every` so often, and what its killed run has to show."""
    options = ["--every", every, "--memory-every", "1step"]
    done = perform(kills, seed, folder / "kept", options, command)
    return {**done.counts, **lost(done.run, done.kills)}


def lost(run: RunDir, kills: list[dict[str, Any]]) -> dict[str, Any]:
    """How many kills cost how many completed steps: of those that the journal holds, and of those
    that the rank had completed when it died."""
    planned = [e for _, e in read_events(run, "supervisor") if isinstance(e, RecoveryPlanned)]
    found = entries.attempts(Sequence(run.sequence).read())
    bases = {entry.number: entry.plan.base.step if entry.plan.base else 0 for entry in found}
    deadly = [kill for kill in kills if kill["victim"].startswith("rank ")]
    by_journal = collections.Counter(event.lost_steps for event in planned if event.plan.base)
    by_page = collections.Counter(kill["step"] - bases[kill["attempt"] + 1] for kill in deadly)
    return {
        "lost_by_the_journal": {str(n): by_journal[n] for n in sorted(by_journal)},
        "lost_by_the_ranks_page": {str(n): by_page[n] for n in sorted(by_page)},
        "restarts": len(bases) - 1,
    }


def is_as_stated(counts: dict[str, Any]) -> bool:
    """A page names a step before its boundary is over, in which the capture is made: killed there,
    a rank loses that step and the one before."""
    return (
        counts["identical"]
        and counts["restarts"] <= counts["kills"]
        and not counts["not_proven"]
        and max(map(int, counts["lost_by_the_journal"])) <= 1
        and max(map(int, counts["lost_by_the_ranks_page"])) <= 2
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        counts = rehearse(args.kills, args.seed, Path(name), "10steps", [sys.executable, *EXAMPLE])
    write("memory", counts, args.seed, began)
    return 0 if is_as_stated(counts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
