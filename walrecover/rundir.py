"""Where things lie: the one place that knows the layout of `.walrecover`.

.walrecover/runs/<run>/sequence/00000007.json
                      /snapshots/step-00001200.a3-9f2c01d7/
                      /journal/a3-9f2c01d7/<writer>/        or below --journal-dir
                      /attempts/a3-9f2c01d7/                what the processes of one attempt
                                                            tell each other; never state
                      /artefacts/a3-9f2c01d7/               the stacks of a hang
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from walrecover.entries import attempt_label
from walrecover.errors import BadInput
from walrecover.files import make_directory, storage
from walrecover.manifest import is_run_name

DIRECTORY = ".walrecover"


class RunDir(NamedTuple):
    """The directory of one run. `root` is the `.walrecover` folder, absolute."""

    root: Path
    name: str
    journal_root: Path | None = None

    @property
    def path(self) -> Path:
        return _below(self.root, self.name)

    @property
    def sequence(self) -> Path:
        return _below(self.root, self.name, "sequence")

    @property
    def snapshots(self) -> Path:
        return _below(self.root, self.name, "snapshots")

    @property
    def journal(self) -> Path:
        if self.journal_root is not None:
            return self.journal_root / self.name / "journal"
        return _below(self.root, self.name, "journal")

    @property
    def attempts(self) -> Path:
        return _below(self.root, self.name, "attempts")

    def stream(self, number: int, nonce: str, writer: str) -> Path:
        return self.journal / attempt_label(number, nonce) / writer

    def meeting(self, number: int, nonce: str) -> Path:
        """Where the processes of one attempt meet: promises, announcements, beats."""
        return self.attempts / attempt_label(number, nonce)

    def artefacts(self, number: int, nonce: str) -> Path:
        """What is kept of an attempt beside its journal: stacks. Made where there is some."""
        return self.path / "artefacts" / attempt_label(number, nonce)

    def exists(self) -> bool:
        return self.sequence.is_dir()

    def create(self) -> None:
        """Make the run's folders, durable, private, and ignored by git. Raises StorageFailed."""
        with storage(f"cannot create the run directory {self.path}"):
            make_directory(self.root)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text(
                    "# what walrecover keeps; deleting this folder uninstalls it\n*\n"
                )
            for folder in (self.sequence, self.snapshots, self.journal, self.attempts):
                make_directory(folder)


@lru_cache(maxsize=64)
def _below(root: Path, name: str, *parts: str) -> Path:
    """Made once: to put a path together takes longer than to look at what lies there."""
    return root.joinpath("runs", name, *parts)


def find_root(directory: str | os.PathLike[str] | None = None) -> Path:
    """The `.walrecover` folder: the argument, else WALRECOVER_DIR, else the working directory's."""
    given = directory or os.environ.get("WALRECOVER_DIR")
    return Path(given).absolute() if given else Path.cwd() / DIRECTORY


def open_run(root: Path, name: str, journal: Path | None = None) -> RunDir:
    """A run that must exist. Raises BadInput, naming the runs that do."""
    check_name(name)
    run = RunDir(root, name, journal)
    if not run.exists():
        known = ", ".join(list_runs(root)[:5]) or "none"
        what = (
            "is not a walrecover directory" if not (root / "runs").is_dir() else "has no such run"
        )
        raise BadInput(f"no run {name!r}: {root} {what} (runs there: {known})")
    return run


def list_runs(root: Path) -> list[str]:
    """The names of the runs below `root`, newest first."""
    try:
        found = [
            (entry.stat().st_mtime, entry.name)
            for entry in os.scandir(root / "runs")
            if is_run_name(entry.name) and (Path(entry.path) / "sequence").is_dir()
        ]
    except FileNotFoundError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def check_name(name: str) -> str:
    if not is_run_name(name):
        raise BadInput(
            f"{name!r} cannot name a run: use letters, digits, '.', '_' and '-', at most 128"
        )
    return name


def default_name(directory: str, script: str, arguments: list[str]) -> str:
    """The same command is the same run: the script's stem and four hex digits of the rest."""
    text = "\0".join([directory, script, *arguments])
    stem = "".join(c if c.isalnum() or c in "_-" else "-" for c in Path(script).stem) or "run"
    return (
        f"{stem.lstrip('-') or 'run'}-{hashlib.blake2b(text.encode(), digest_size=2).hexdigest()}"
    )
