"""Every state that a crash may leave of a real run, recovered (Shows 5, specs/05-crash-safety.md).

A run of two ranks is recorded under strace (tests/crash_states/workload.py), its legal crash
states are rebuilt and recovered, and each is held to what had been acknowledged
(tests/crash_states/promises.py). Then the tests of the tests: with any one safeguard taken out,
some state must break a promise.

CRASH_STATES says how many states are looked at; by default few in the Hypothesis profile `dev`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash_states import (
    Report,
    explore,
    is_directory_sync,
    is_file_sync,
    link_to_rename,
    ops,
    promises,
    replace,
    table,
)
from tests.crash_states.recorded import around, find, left_out, recoveries, story
from walrecover import codec
from walrecover.journal import reader
from walrecover.journal.checks import Checked

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

FULL = 22_000
FEW = 2_500
BUDGET = int(
    os.environ.get("CRASH_STATES")
    or (FULL if os.environ.get("HYPOTHESIS_PROFILE", "dev") != "dev" else FEW)
)
DISTINCT = 20_000
PER_ROW = 50
SEED = 5
RECOVERIES = 4
MUTANT_BUDGET = 1_500


class Recorded(NamedTuple):
    operations: list[ops.Op]
    row: Callable[[ops.Op], str]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    operations = story(tmp_path_factory.mktemp("crash-states") / "run")
    return Recorded(operations, table.rows(operations))


def test_p1_p2_p3_p7_p8_hold_in_every_crash_state(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    report = explore(
        recorded.operations, promises.check, seed=SEED, budget=BUDGET, rows=recorded.row,
        workers=2, stop_after=5,
    )  # fmt: skip
    with capsys.disabled():
        print(f"\ncrash states, order 'any', seed {SEED}\n{report}")
    assert not report.violations, report.violations[0]
    if BUDGET >= FULL:
        assert set(report.rows) == set(table.ROWS)
        assert {row: count for row, count in report.rows.items() if count < PER_ROW} == {}
        assert report.distinct >= DISTINCT


def test_what_is_ordered_by_a_journaling_file_system_is_safe_as_well(recorded: Recorded) -> None:
    report = explore(
        recorded.operations, promises.check, seed=SEED, budget=BUDGET // 20, order="ordered",
        rows=recorded.row, workers=2, stop_after=5,
    )  # fmt: skip
    assert not report.violations, report.violations[0]


def test_p7_a_crash_inside_recovery_changes_nothing(recorded: Recorded, tmp_path: Path) -> None:
    """Recovery is recorded over crash states, and every crash state of it recovered."""
    recorded_again = recoveries(*recorded, tmp_path, seed=SEED, count=RECOVERIES)
    for operations, check in recorded_again:
        report = explore(operations, check, seed=SEED, budget=100, workers=2, stop_after=5)
        assert not report.violations, report.violations[0]
        assert report.checked == 100


# --- the tests of the tests: each safeguard taken out -------------------------------------------


def violations(operations: list[ops.Op], budget: int = MUTANT_BUDGET) -> Report:
    report = explore(operations, promises.check, budget=budget, workers=2, stop_after=1)
    assert report.violations, f"none of {report.checked} states misses it"
    print(report.violations[0])
    return report


# Which sync, of those of its row: the last, where the first few protect nothing acknowledged.
FILE_SYNCS = {
    table.STREAM: 0, table.GROUP: 0, table.SYNC: 0, table.TENSORS: 1, table.PLAIN: 1,
    table.VOTE: 1, table.MANIFEST: 0, table.ATTEMPT: 0, table.COMMIT: 0, table.RETIREMENT: 0,
}  # fmt: skip


@pytest.mark.parametrize("row", FILE_SYNCS)
def test_a_missing_file_sync_is_found(recorded: Recorded, row: str) -> None:
    operations = recorded.operations
    at = find(operations, lambda op: is_file_sync(op) and recorded.row(op) == row, FILE_SYNCS[row])
    violations(left_out(operations, at))


def test_a_missing_sync_of_a_shard_written_at_a_pace_is_found(recorded: Recorded) -> None:
    """Attempt 2 writes as a saver does: past the page cache is not on the disk."""
    at = find(
        recorded.operations,
        lambda op: is_file_sync(op) and recorded.row(op) == table.TENSORS and ".a2-" in op.path,
        0,
    )
    violations(left_out(recorded.operations, at))


FOLDER_SYNCS = {
    "the first names of a stream's folder": (table.STREAM, "/.rank-", 0),
    "a stream's name": (table.STREAM, "/journal/a", -1),
    "the folder of an attempt's streams": (table.FOLDERS, "/journal", 0),
    "the folder of a snapshot": (table.FOLDERS, "/snapshots", 0),
    "a manifest's name": (table.MANIFEST, "/snapshots/", 0),
    "an attempt's name": (table.ATTEMPT, "/sequence", 0),
    "a commit's name": (table.COMMIT, "/sequence", 1),
    "a retirement's name": (table.RETIREMENT, "/sequence", 1),
    "an entry's name, by who builds on it": (table.ATTEMPT, "/sequence", -2),
}


@pytest.mark.parametrize("what", FOLDER_SYNCS)
def test_a_missing_folder_sync_is_found(recorded: Recorded, what: str) -> None:
    operations = recorded.operations
    row, path, nth = FOLDER_SYNCS[what]
    at = find(
        operations,
        lambda op: is_directory_sync(op) and recorded.row(op) == row and path in op.path,
        nth,
    )
    violations(left_out(operations, at))


def test_a_rename_in_place_of_create_if_absent_is_found(recorded: Recorded) -> None:
    """The old rank 0, waking, would put its commit in the place of the new attempt's entry."""
    operations = recorded.operations
    lost = find(operations, lambda op: isinstance(op, ops.LostLink))
    assert recorded.row(operations[lost]) == table.COMMIT
    renamed = replace(
        operations, lambda op: isinstance(op, ops.Link | ops.LostLink), link_to_rename
    )
    report = violations(around(renamed, lost, acks=1))
    assert "attempt (2," in report.violations[0].message


def test_a_commit_before_the_votes_is_found(tmp_path: Path) -> None:
    operations = story(tmp_path, "early-commit")
    first = find(operations, lambda op: isinstance(op, ops.Ack) and op.text.startswith("commit"))
    report = violations(around(operations, first, acks=1))
    assert "no snapshot of run run verifies" in report.violations[0].message


def test_reading_without_crc_and_chain_is_found(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believe(envelopes: list[bytes], **_: object) -> Checked:
        payloads = [envelope[codec.HEADER_BYTES :] for envelope in envelopes]
        return Checked(payloads, list(map(codec.chain_of, envelopes)))

    monkeypatch.setattr(promises, "ONE_IN", 1)
    last = find(recorded.operations, lambda op: isinstance(op, ops.Ack), -3)
    operations = around(recorded.operations, last)
    sound = explore(operations, promises.check, budget=60, workers=2)
    assert not sound.violations, sound.violations[0]
    monkeypatch.setattr(reader, "check", believe)
    report = violations(operations)
    assert "is read as an event" in report.violations[0].message
