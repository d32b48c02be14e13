"""Every state that a crash may leave of an import and an export: whole, or not there.

Then the tests of the test: without the syncs, some state must break that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash_states import Report, explore, importing, is_directory_sync, is_file_sync, ops
from tests.crash_states.record import record
from tests.crash_states.trace import parse

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

BUDGET = 400
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[ops.Op]:
    folder = tmp_path_factory.mktemp("import")
    root = folder / "root"
    root.mkdir()
    importing.make_archive(root)
    recording = record(
        [sys.executable, "-m", "tests.crash_states.importing"],
        root,
        folder / "work",
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    return parse(recording, drop=lambda path: path.endswith("lock.mdb"))


def explored(operations: list[ops.Op]) -> Report:
    return explore(operations, importing.check, seed=5, budget=BUDGET, workers=2, stop_after=1)


def test_an_import_and_an_export_are_whole_or_absent_in_every_crash_state(
    recorded: list[ops.Op], capsys: pytest.CaptureFixture[str]
) -> None:
    report = explored(recorded)
    with capsys.disabled():
        print(f"\ncrash states of an import and an export\n{report}")
    assert not report.violations, report.violations[0]
    assert report.distinct > 20


@pytest.mark.parametrize(
    ("what", "path"),
    [("a shard's bytes", ".safetensors"), ("an entry's bytes", ".json"), ("the archive's", ".zst")],
)
def test_a_missing_file_sync_is_found(recorded: list[ops.Op], what: str, path: str) -> None:
    found = [n for n, op in enumerate(recorded) if is_file_sync(op) and op.path.endswith(path)]
    assert found, what
    assert explored([*recorded[: found[-1]], *recorded[found[-1] + 1 :]]).violations, what


@pytest.mark.parametrize(
    ("what", "renamed", "folder"),
    [("the run's name", "a-run", "/runs"), ("the archive's name", "b.tar.zst", "")],
)
def test_a_missing_folder_sync_is_found(
    recorded: list[ops.Op], what: str, renamed: str, folder: str
) -> None:
    """None of that folder behind the rename: a later one makes the name durable as well."""
    at = next(
        n for n, op in enumerate(recorded) if isinstance(op, ops.Rename) and op.name == renamed
    )
    rest = [
        op
        for n, op in enumerate(recorded)
        if n < at or not (is_directory_sync(op) and op.path.endswith(folder))
    ]
    assert len(rest) < len(recorded)
    assert explored(rest).violations, what
