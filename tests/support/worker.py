"""Children of `forks`: short trainings that say what was acknowledged, and die where asked.

Owns what they do and the file that they say it in. A line is written by one `write`, so that it
survives whatever happens to the child next.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.protocol import Launch, entries_of, open_stream
from walrecover import entries as model
from walrecover import failpoints
from walrecover.entries import CommitEntry
from walrecover.errors import Fenced, RunBusy, WalrecoverError
from walrecover.exporting import export
from walrecover.failpoints import FailpointReached
from walrecover.importing import bring_back
from walrecover.mirroring import keep_up
from walrecover.processes import identity
from walrecover.pruning import prune
from walrecover.recovery import begin_attempt
from walrecover.retention import Rules
from walrecover.rundir import RunDir
from walrecover.vaults import Vault

# Exit codes.
REACHED, REFUSED, FENCED, BUSY = 70, 71, 72, 73


class Said(NamedTuple):
    """What children acknowledged: durable LSNs by stream, commits in order, failpoints passed."""

    synced: dict[tuple[str, str], int]
    committed: list[tuple[int, str]]
    passed: int


class Notebook:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def said(path: Path) -> Said:
    found = Said({}, [], 0)
    for line in path.read_text().splitlines() if path.exists() else []:
        kind, *words = line.split()
        if kind == "synced":
            found.synced[words[0], words[1]] = int(words[2])
        elif kind == "committed":
            found.committed.append((int(words[0]), words[1]))
        elif kind == "passed":
            found = found._replace(passed=int(words[0]))
    return found


def _until_its_end(work: Callable[[], object]) -> int:
    try:
        work()
    except FailpointReached:
        return REACHED
    except Fenced:
        return FENCED
    except RunBusy:
        return BUSY
    except (WalrecoverError, OSError):
        return REFUSED
    return 0


def _sync(launch: Launch, notes: Notebook) -> None:
    for journal in launch.journals:
        notes.say("synced", launch.entry.label, journal.stream.writer, journal.sync().lsn)


def _save(launch: Launch, notes: Notebook, retention: int) -> CommitEntry | None:
    """As a saver does it: what the storage refuses is abandoned, and training goes on."""
    try:
        commit = launch.save()
        notes.say("committed", commit.snapshot.step, commit.snapshot.manifest)
        launch.keep(commit, retention)
    except Fenced:
        raise
    except (WalrecoverError, OSError):
        return None
    return commit


def train(
    root: str,
    notes: str,
    armed: str = "",
    attempts: int = 2,
    snapshots: int = 4,
    retention: int = 2,
) -> int:
    """Attempts one after the other, each with snapshots, retirement and deletion."""
    notebook = Notebook(notes)
    run = RunDir(Path(root), "a-run")
    failpoints.arm(armed)

    def work() -> None:
        for _ in range(attempts):
            with Launch.begin(run) as launch:
                for _ in range(snapshots):
                    launch.train(2)
                    _sync(launch, notebook)
                    _save(launch, notebook, retention)
                launch.train(1)

    code = _until_its_end(work)
    notebook.say("passed", sum(failpoints.passages().values()))
    return code


def vote(root: str, notes: str, armed: str, number: int, rank: int, steps: int) -> int:
    """The saver of one rank: it opens its stream, trains so far and votes."""
    run = RunDir(Path(root), "a-run")
    notebook = Notebook(notes)
    entry = model.attempts(entries_of(run))[number - 1]
    failpoints.arm(armed)

    def work() -> None:
        with open_stream(run, entry, rank, 2) as journal:
            launch = Launch(run, entry, 2, [journal])
            launch.train(steps)
            launch.committed_lsn = [0] * 2
            launch.vote(rank, stream=journal)
            notebook.say("synced", entry.label, f"rank-{rank}", journal.durable)

    return _until_its_end(work)


def export_run(root: str, file: str, armed: str = "") -> int:
    failpoints.arm(armed)
    return _until_its_end(lambda: export(RunDir(Path(root), "a-run"), Path(file)))


def import_run(root: str, file: str, journal: str | None = None, armed: str = "") -> int:
    failpoints.arm(armed)
    elsewhere = Path(journal) if journal else None
    return _until_its_end(lambda: bring_back(Path(file), Path(root), journal=elsewhere))


def keep_up_run(root: str, where: str, environ: dict[str, str], armed: str = "") -> int:
    os.environ.update(environ)
    failpoints.arm(armed)
    return _until_its_end(lambda: keep_up(RunDir(Path(root), "a-run"), Vault(where)))


def prune_run(root: str, armed: str = "") -> int:
    failpoints.arm(armed)
    run = RunDir(Path(root), "a-run")
    return _until_its_end(lambda: prune(run, Rules(keep_last=2), now=0.0))


def prune_on(root: str, done: str) -> int:
    """Prune again and again, until `done` exists."""
    run = RunDir(Path(root), "a-run")

    def work() -> None:
        while not os.path.exists(done):
            prune(run, Rules(keep_last=2), now=0.0)

    return _until_its_end(work)


def hold(root: str, gate: str) -> int:
    """Of several that begin at once, the one that holds the run stops, so that it stays alive."""
    with open(gate):  # opens once somebody opens the other end
        run = RunDir(Path(root), "a-run")

    def work() -> None:
        run.create()
        begin_attempt(run, identity())
        os.kill(os.getpid(), signal.SIGSTOP)

    return _until_its_end(work)
