"""Every state that a crash may leave of a fork: the fork whole, or none; the parent as it was.

Then the tests of the test: without the syncs, some state must break that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash_states import Report, explore, forking, is_directory_sync, is_file_sync, ops
from tests.crash_states.record import record
from tests.crash_states.trace import parse

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

BUDGET = 600
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[ops.Op]:
    folder = tmp_path_factory.mktemp("fork")
    root = folder / "root"
    root.mkdir()
    forking.train(root)
    recording = record(
        [sys.executable, "-m", "tests.crash_states.forking"],
        root,
        folder / "work",
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    return parse(recording, drop=lambda path: path.endswith("lock.mdb"))


def explored(operations: list[ops.Op]) -> Report:
    return explore(operations, forking.check, seed=5, budget=BUDGET, workers=2, stop_after=1)


def test_a_fork_is_whole_or_absent_in_every_crash_state(
    recorded: list[ops.Op], capsys: pytest.CaptureFixture[str]
) -> None:
    report = explored(recorded)
    with capsys.disabled():
        print(f"\ncrash states of a fork\n{report}")
    assert not report.violations, report.violations[0]
    assert report.distinct > 20


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("the names of the snapshot's files", "/snapshots/step-"),
        ("the origin's name", "/sequence"),
        ("the fork's name", "/runs"),
    ],
)
def test_a_missing_folder_sync_is_found(recorded: list[ops.Op], what: str, path: str) -> None:
    def is_it(op: ops.Op) -> bool:
        return is_directory_sync(op) and (
            op.path.endswith(path) if path == "/runs" else path in op.path
        )

    found = [place for place, op in enumerate(recorded) if is_it(op)]
    assert found, what
    report = explored([*recorded[: found[-1]], *recorded[found[-1] + 1 :]])
    assert report.violations, what


def test_an_origin_whose_bytes_are_not_durable_is_found(recorded: list[ops.Op]) -> None:
    at = [n for n, op in enumerate(recorded) if is_file_sync(op) and "/sequence/" in op.path][-1]
    assert explored([*recorded[:at], *recorded[at + 1 :]]).violations
