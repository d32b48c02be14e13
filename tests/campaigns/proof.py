"""`make torture-proof`: 30 kills of char_gpt.py and of augmented_images.py over 3 epochs each.

    make torture-proof ARGS="--kills 10 --seed 7"

The killed run must end with the bits of the undisturbed one; its audit must be clean and agree with
the file in which the script notes its samples; and every resume must be proven exact: by the steps
that were done again, or, where there are none, by the digest of the state given back.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.campaigns.report import ROOT, write
from tests.support.trained import agree
from walrecover import recovery, resumes
from walrecover.events import ResumeVerified
from walrecover.rundir import RunDir
from walrecover.verdicts import said

EPOCHS = 3


class Example(NamedTuple):
    """`size`: samples of an epoch."""

    name: str
    arguments: Sequence[str]
    size: int


EXAMPLES = (
    Example("char_gpt.py", ("--steps-per-epoch", "100", "--batch-size", "16"), 1600),
    Example("augmented_images.py", ("--pictures", "1590", "--batch-size", "16"), 1590),
)


def proofs(run: RunDir) -> dict[str, Any]:
    """How each resume of a run was proven, counted, and the sentences of those that were not."""
    how: collections.Counter[str] = collections.Counter()
    others = []
    for one in resumes.judge(recovery.fold_run(run), resumes.steps_of(run)):
        verdict = one.verdict
        if isinstance(verdict, ResumeVerified):
            by = "by steps done again" if verdict.to_step else "by the state given back"
            how[f"{verdict.tier}, {by}"] += 1
        else:
            others.append(f"attempt {one.attempt}, rank {one.rank}: {said(verdict)}")
    return {"resumes": dict(sorted(how.items())), "not_proven": others}


def exact(found: dict[str, Any]) -> bool:
    """Whether all resumes were, and some by steps that were done again."""
    hows = found["resumes"]
    return (
        not found["not_proven"]
        and "exact, by steps done again" in hows
        and all(how.startswith("exact, ") for how in hows)
    )


class Rehearsed(NamedTuple):
    """`kills`: those that landed; `run`: the killed one; `counts`: what every campaign reports."""

    kills: list[dict[str, Any]]
    run: RunDir
    counts: dict[str, Any]


def perform(kills: int, seed: int, kept: Path, options: list[str], command: list[str]) -> Rehearsed:
    """A rehearsal of a command, in the folder that its runs are kept in."""
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "rehearse", "--json", "--keep", str(kept),
         "--kills", str(kills), "--seed", str(seed), *options, "--", *command],
        cwd=kept.parent, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    body = json.loads(done.stdout)
    landed = [kill for kill in body.get("kills", []) if kill["landed"]]
    run = RunDir(kept / "killed", "rehearsal")
    counts = {
        "identical": done.returncode == 0 and body.get("identical", False),
        "kills": len(landed),
        "by_phase": dict(collections.Counter(kill["phase"] for kill in landed)),
        "by_victim": dict(collections.Counter(kill["victim"] for kill in landed)),
        **proofs(run),
    }
    return Rehearsed(landed, run, counts)


def rehearse(example: Example, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """One rehearsal, and what its killed run has to show. Raises AssertionError."""
    ids = folder / "ids"
    command = [sys.executable, str(ROOT / "examples" / example.name), *example.arguments]
    command += ["--epochs", str(EPOCHS), "--ids", str(ids)]
    done = perform(kills, seed, folder / "kept", [], command)
    return {**done.counts, "agree": agree(done.run, ids, EPOCHS, example.size)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    counts = {}
    for example in EXAMPLES:
        with tempfile.TemporaryDirectory() as name:
            counts[example.name] = rehearse(example, args.kills, args.seed, Path(name))
    write("proof", counts, args.seed, began)
    return 0 if all(count["identical"] and exact(count) for count in counts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
