"""Export and import, killed or refused by the disk at every failpoint: whole, or not there; and an
export beside a training that never stops.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forks import Forks
from tests.support.protocol import Launch, candidates, check_state, entries_of, files_below, holder
from tests.support.worker import REACHED, REFUSED
from walrecover import failpoints, verifying
from walrecover.exporting import export
from walrecover.importing import bring_back
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir, list_runs

ACTIONS = ("kill", "raise", "enospc")
EXPORTING = [name for name in failpoints.NAMES if name.startswith("export.")]
IMPORTING = [name for name in failpoints.NAMES if name.startswith("import.")]
AN_HOUR_AND_MORE = 4000


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its archive; neither is changed by the tests."""
    folder = tmp_path_factory.mktemp("made")
    run = RunDir(folder / ".walrecover", "a-run")
    with Launch.begin(run) as launch:
        for _ in range(3):
            launch.train(2)
            launch.keep(launch.save())
    export(run, folder / "a.tar.zst")
    return folder


def died(code: int | None, action: str) -> None:
    assert code == (
        -signal.SIGKILL if action == "kill" else {"raise": REACHED}.get(action, REFUSED)
    )


def contents(folder: Path) -> dict[str, bytes]:
    # LMDB's lock file is the readers' own.
    return {str(p): p.read_bytes() for p in files_below(folder) if p.name != "lock.mdb"}


def check_whole(run: RunDir) -> None:
    assert [one for one in verifying.verify(run, entries_of(run)) if one.problem] == []
    check_state(run, candidates(run)[0])


def age(folder: Path) -> None:
    """As if what lies here had been left an hour ago."""
    then = time.time() - AN_HOUR_AND_MORE
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            os.utime(path, (then, then))


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name[0] == "." and name != ".walrecover"]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", EXPORTING)
def test_an_export_leaves_a_whole_archive_or_none(
    forks: Forks, made: Path, tmp_path: Path, name: str, action: str
) -> None:
    root, file = made / ".walrecover", tmp_path / "b.tar.zst"
    before = contents(root / "runs" / "a-run")
    count = 5 if name == "export.packed" else 1
    armed = f"{name}:{action}:{count}"
    died(
        forks.call("tests.support.worker:export_run", root=str(root), file=str(file), armed=armed),
        action,
    )
    assert file.exists() == (name == "export.renamed")
    if action != "kill":
        assert leftovers(tmp_path) == leftovers(root / "runs") == []
    assert contents(root / "runs" / "a-run") == before
    for folder in (tmp_path, root / "runs"):
        for left in leftovers(folder):
            age(folder / left)
    if not file.exists():
        assert forks.call("tests.support.worker:export_run", root=str(root), file=str(file)) == 0
        assert leftovers(tmp_path) == leftovers(root / "runs") == []
    check_whole(bring_back(file, tmp_path / "n").run)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", IMPORTING)
def test_an_import_leaves_a_whole_run_or_none(
    forks: Forks, made: Path, tmp_path: Path, name: str, action: str
) -> None:
    root, there = tmp_path / ".walrecover", tmp_path / "there"
    journal = str(there) if name == "import.journal" else None
    armed = f"{name}:{action}:{7 if name == 'import.unpacked' else 1}"
    given = {"root": str(root), "file": str(made / "a.tar.zst"), "journal": journal}
    died(forks.call("tests.support.worker:import_run", **given, armed=armed), action)
    assert list_runs(root) == (["a-run"] if name == "import.renamed" else [])
    if action != "kill":
        assert leftovers(root / "runs") == []
    for left in leftovers(root / "runs"):
        age(root / "runs" / left)
    if name == "import.journal" and action == "kill":  # as the message says, and the crash table
        assert forks.call("tests.support.worker:import_run", **given) == REFUSED
        os.rename(there / "a-run", tmp_path / "away")
    if name != "import.renamed":
        assert forks.call("tests.support.worker:import_run", **given) == 0
        assert leftovers(root / "runs") == []
    run = RunDir(root, "a-run", there if journal else None)
    check_whole(run)
    assert begin_attempt(run, holder()).entry.plan.base == candidates(run)[0]


def test_what_is_exported_beside_a_training_is_always_a_whole_run(
    forks: Forks, tmp_path: Path
) -> None:
    """Snapshots, retirement and deletion go on all the time, over several attempts."""
    root = tmp_path / ".walrecover"
    run = RunDir(root, "a-run")
    with Launch.begin(run) as launch:
        for _ in range(2):
            launch.train()
            launch.save()
    pid = forks.start(
        "tests.support.worker:train", root=str(root), notes=str(tmp_path / "notes"),
        attempts=4, snapshots=12,
    )  # fmt: skip
    steps = []
    while (root / "runs" / "a-run" / "attempts").is_dir() and not _has_ended(pid):
        number = len(steps)
        done = export(run, tmp_path / f"{number}.tar.zst")
        assert done.statement.left_out == ()
        new = bring_back(tmp_path / f"{number}.tar.zst", tmp_path / "n", name=f"n{number}").run
        check_whole(new)
        steps.append(candidates(new)[0].step)
    assert forks.wait(pid) == 0
    assert len(steps) > 1 and steps == sorted(steps) and steps[-1] > steps[0]


def _has_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
