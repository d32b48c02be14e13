"""The program whose crash states an import and an export can leave: it makes a run of an archive,
an archive of that, and acknowledges each.

Owns: the archive, and what must be found in every crash state: the run whole, or not there; the
second archive whole, or not there.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.support.protocol import Launch, candidates, check_state, entries_of
from walrecover import verifying
from walrecover.errors import WalrecoverError
from walrecover.exporting import export
from walrecover.importing import bring_back
from walrecover.rundir import RunDir, list_runs

from .workload import ROOT, acknowledge

FIRST, SECOND, NAME = "a.tar.zst", "b.tar.zst", "a-run"
STEPS = [4, 2]


def make_archive(directory: Path) -> None:
    """Of a run with snapshots of 2 and 4, which is not below `directory`."""
    with tempfile.TemporaryDirectory() as elsewhere:
        run = RunDir(Path(elsewhere), NAME)
        with Launch.begin(run, world=1) as launch:
            for _ in STEPS:
                launch.train(2)
                launch.save()
        export(run, directory / FIRST)


def check(directory: Path, acks: tuple[str, ...]) -> str | None:
    """What is wrong with this state, or None."""
    run = RunDir(directory / ROOT, NAME)
    if list_runs(run.root) == []:
        if acks or (directory / SECOND).exists():
            return "the run was acknowledged, and is gone"
    elif problem := _wrong(run):
        return f"the run is there, and not whole: {problem}"
    if not (directory / SECOND).exists():
        return "the archive was acknowledged, and is gone" if "exported" in acks else None
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            problem = _wrong(bring_back(directory / SECOND, Path(elsewhere)).run)
        except (WalrecoverError, OSError) as error:
            problem = str(error)
    return f"the archive is there, and not whole: {problem}" if problem else None


def _wrong(run: RunDir) -> str | None:
    try:
        entries = entries_of(run)
        for one in verifying.snapshots(run, candidates(run)):
            if one.problem:
                return one.problem
        if [ref.step for ref in candidates(run)] != STEPS:
            return f"it has {candidates(run)} of {len(entries)} entries"
        check_state(run, candidates(run)[0], world=1)
        if not (run.path / "imported.json").read_bytes().endswith(b"\n"):
            return "its note is torn"
        if sum(path.stat().st_size for path in run.journal.rglob("data.mdb")) < 8192:
            return "its stream is not there"
    except (WalrecoverError, OSError) as error:
        return str(error)
    return None


def main() -> None:
    here = Path.cwd()
    run = bring_back(here / FIRST, here / ROOT).run
    acknowledge("imported")
    export(run, here / SECOND)
    acknowledge("exported")


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
