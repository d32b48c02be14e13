"""Every failpoint × {kill, raise, enospc} on a real child process: the old state loads.

The child trains over a run that has a state already, through every step of the protocol, twice
(it restarts in between). What it acknowledged before it died is what must be there afterwards.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forks import Forks
from tests.support.forkserver import ForkServer
from tests.support.protocol import (
    NAMES,
    candidates,
    check_state,
    entries_of,
    holder,
    recovery_point,
)
from tests.support.waiting import await_savers
from tests.support.worker import REACHED, REFUSED, Said, said
from walrecover import failpoints, recovery
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir

ROOT = Path(__file__).parents[2]
ACTIONS = ("kill", "raise", "enospc")
RESTORING = [name for name in NAMES if name.startswith("restore.")]
OTHERS = [name for name in NAMES if name not in RESTORING]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a state, made once and copied for every case."""
    folder = tmp_path_factory.mktemp("trained")
    with Forks() as server:
        code = server.call(
            "tests.support.worker:train", root=str(folder / ".walrecover"),
            notes=str(folder / "notes"), attempts=1,
        )  # fmt: skip
    assert code == 0 and said(folder / "notes").committed
    return folder


def check_what_was_acknowledged(run: RunDir, words: Said) -> None:
    """Every acknowledged commit and event is there; recovering twice is recovering once."""
    live = candidates(run)
    for ref in live:
        check_state(run, ref)
    point = recovery_point(run)
    assert point is not None
    newest = words.committed[-1]
    assert point.step >= newest[0]
    assert newest[1] in {ref.manifest for ref in live}
    folded = recovery.fold_run(run)
    lsns = {(f"a{k.attempt}-{k.nonce}", k.writer): r.lsn for k, r in folded.records.items()}
    for stream, lsn in words.synced.items():
        assert lsns[stream] >= lsn
    assert not any(record.losses for record in folded.records.values())
    for _ in range(2):
        plan = begin_attempt(run, holder()).entry.plan
        assert (plan.base, plan.rejected) == (point, ())
    assert recovery_point(run) == point


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", OTHERS)
def test_the_old_state_loads(
    forks: Forks, trained: Path, tmp_path: Path, name: str, action: str
) -> None:
    for count in (1, 2):
        folder = tmp_path / str(count)
        shutil.copytree(trained, folder)
        code = forks.call(
            "tests.support.worker:train", root=str(folder / ".walrecover"),
            notes=str(folder / "notes"), armed=f"{name}:{action}:{count}",
        )  # fmt: skip
        words = said(folder / "notes")
        if action == "kill":
            assert code == -signal.SIGKILL, f"{name} is not passed {count} times"
        else:
            assert code in (0, REACHED, REFUSED)
            assert words.passed >= count, f"{name} is not passed {count} times"
        if action == "raise" and not name.startswith("journal."):
            assert code == REACHED
        check_what_was_acknowledged(RunDir(folder / ".walrecover", "a-run"), words)


# --- restoring, which needs torch ---------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def resume(
    server: ForkServer, folder: Path, *, steps: int, armed: str = "", die: bool = False
) -> tuple[int, list[str]]:
    result = folder / "result"
    result.unlink(missing_ok=True)
    child = server.start(
        "tests.support.restoring:resume", folder=folder, output=folder / "output", env={},
        steps=steps, armed=armed, result=str(result), die=die,
    )  # fmt: skip
    code = child.wait()
    await_savers(folder)
    return code, result.read_text().split() if result.exists() else []


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", RESTORING)
def test_a_crash_while_restoring_changes_nothing(
    torch_server: ForkServer, tmp_path: Path, name: str, action: str
) -> None:
    assert resume(torch_server, tmp_path, steps=3, die=True)[0] == -signal.SIGKILL
    run = RunDir(tmp_path / ".walrecover", "a-run")
    before = candidates(run)
    assert [ref.step for ref in before] == [3, 2, 1]
    code, result = resume(torch_server, tmp_path, steps=0, armed=f"{name}:{action}")
    assert code == (-signal.SIGKILL if action == "kill" else 1), "the failpoint is not passed"
    assert result == []
    assert candidates(run) == before
    code, (step, weights) = resume(torch_server, tmp_path, steps=0)
    assert (code, step) == (0, "3")
    assert resume(torch_server, tmp_path, steps=0)[1] == ["3", weights]
    assert len(entries_of(run)) == 1 + 3 + 3


# --- the table ----------------------------------------------------------------------------------


def test_every_failpoint_of_the_source_is_listed_and_the_reverse() -> None:
    passed = set()
    for path in {*(ROOT / "walrecover").rglob("*.py")} - {ROOT / "walrecover" / "failpoints.py"}:
        text = path.read_text()
        passed |= set(re.findall(r'\bfailpoint\("([^"]+)"\)', text))
        passed |= set(re.findall(r'\b(?:written|linked)="([^"]+)"', text))
    assert passed == set(failpoints.NAMES)


def test_a_point_that_is_not_passed_so_often_is_told(
    forks: Forks, trained: Path, tmp_path: Path
) -> None:
    """The test of the test: a child that lives through it does not count as one that died."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    code = forks.call(
        "tests.support.worker:train", root=str(tmp_path / ".walrecover"),
        notes=str(tmp_path / "notes"), armed="snapshot.retired:kill:99",
    )  # fmt: skip
    assert code == 0 and 0 < said(tmp_path / "notes").passed < 99
