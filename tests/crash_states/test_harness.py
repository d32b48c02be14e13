"""The harness against recorded programs: it finds what is wrong and nothing where all is right.

Needs strace.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.crash_states import (
    Report,
    TraceError,
    explore,
    is_directory_sync,
    is_file_sync,
    link_to_rename,
    ops,
    parse,
    programs,
    rebuild,
    record,
    replace,
    without,
)
from tests.crash_states.model import Order
from tests.crash_states.record import RecordError, read_tree

pytestmark = pytest.mark.system

Recorded = Callable[..., list[ops.Op]]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    def run(
        source: str, before: Mapping[str, bytes] | None = None, extra: tuple[str, ...] = ()
    ) -> list[ops.Op]:
        root = tmp_path / "root"
        root.mkdir()
        for path, data in (before or {}).items():
            (root / path).write_bytes(data)
        script = tmp_path / "program.py"
        script.write_text(source)
        recording = record([sys.executable, str(script)], root, tmp_path / "work", extra=extra)
        return parse(recording, drop=lambda path: path.endswith("lock.mdb"))

    return run


def holds_what_was_acknowledged(state: Path, acks: tuple[str, ...]) -> str | None:
    """For REPLACE: the acknowledged round or a later one, whole."""
    wanted = int(acks[-1]) if acks else 0
    if not (state / "state").exists():
        return f"absent after round {wanted}" if wanted else None
    data = (state / "state").read_bytes()
    for n in range(max(wanted, 1), 4):
        if data == bytes([96 + n]) * (3000 * n):
            return None
    return f"{len(data)} bytes, {data.count(0)} of them zero, after round {wanted}"


def messages(report: Report) -> str:
    return "\n".join(violation.message for violation in report.violations)


@pytest.mark.parametrize("order", ["any", "ordered"])
def test_a_correct_replacement_survives_every_crash(recorded: Recorded, order: Order) -> None:
    report = explore(recorded(programs.REPLACE), holds_what_was_acknowledged, order=order)
    assert not report.violations, report.violations[0]
    assert report.checked >= 100
    assert {"ack", "rename state", "write state.tmp", "fsync state.tmp", "fsync /"} <= set(
        report.rows
    )
    assert report.rows["write state.tmp"] >= 30


def test_a_left_out_file_sync_gives_empty_torn_and_hollow_files(recorded: Recorded) -> None:
    operations = without(recorded(programs.REPLACE), is_file_sync)
    found = messages(explore(operations, holds_what_was_acknowledged))
    assert "0 bytes" in found
    assert "3000 bytes, 3000 of them zero, after round 1" in found
    assert "bytes, 512 of them zero" in found


def test_a_left_out_directory_sync_loses_an_acknowledged_name(recorded: Recorded) -> None:
    operations = without(recorded(programs.REPLACE), is_directory_sync)
    report = explore(operations, holds_what_was_acknowledged)
    assert "absent after round 3" in messages(report)
    assert not any(violation.choice.kill for violation in report.violations)


def test_one_sync_left_out_of_many_is_found(recorded: Recorded) -> None:
    operations = recorded(programs.REPLACE)
    for op in [op for op in operations if isinstance(op, ops.Sync)]:
        changed = [other for other in operations if other is not op]
        report = explore(changed, holds_what_was_acknowledged, stop_after=1)
        assert report.violations, f"nothing missed {op} at {op.seq}"


def test_a_program_that_never_syncs_survives_only_kills(recorded: Recorded) -> None:
    operations = recorded(programs.HASTY)
    report = explore(operations, holds_what_was_acknowledged)
    assert report.violations
    assert not any(violation.choice.kill for violation in report.violations)
    assert "absent after round 3" in messages(report)


def who_won(state: Path, acks: tuple[str, ...]) -> str | None:
    entry = state / "sequence" / "1"
    if acks and (not entry.exists() or entry.read_text() != acks[0]):
        return f"{acks[0]} was told that it won"
    return None


def test_a_rename_in_place_of_create_if_absent_is_found(recorded: Recorded) -> None:
    operations = recorded(programs.CREATE_IF_ABSENT)
    assert not explore(operations, who_won).violations
    links = (ops.Link, ops.LostLink)
    replaced = replace(operations, lambda op: isinstance(op, links), link_to_rename)
    report = explore(replaced, who_won)
    assert any(violation.choice.kill for violation in report.violations)


def commits_are_there(state: Path, acks: tuple[str, ...]) -> str | None:
    import lmdb

    if not (state / "env").exists():
        return f"no environment after commit {acks[-1]}" if acks else None
    path = str(state / "env")
    with (
        lmdb.open(path, lib_version=0, create=False, map_size=1 << 20) as env,
        env.begin() as txn,
    ):
        held = {int(key): value for key, value in txn.cursor()}
    wrong = [n for n, value in held.items() if value != b"%d" % n * (700 * n or 100)]
    missing = [ack for ack in acks if int(ack) not in held]
    return f"wrong {wrong}, missing {missing}" if wrong or missing else None


@pytest.mark.parametrize("order", ["any", "ordered"])
def test_lmdb_holds_every_acknowledged_commit(recorded: Recorded, order: Order) -> None:
    operations = recorded(programs.LMDB)
    assert any(isinstance(op, ops.Sync) and op.how == "O_DSYNC" for op in operations)
    report = explore(operations, commits_are_there, budget=3000, order=order, workers=2)
    assert not report.violations, report.violations[0]
    assert report.distinct >= 2900
    assert report.rows["fdatasync env/data.mdb"] >= 50
    print(report)


@pytest.mark.parametrize("how", ["fdatasync", "O_DSYNC"])
def test_lmdb_without_its_syncs_loses_commits(recorded: Recorded, how: str) -> None:
    operations = without(
        recorded(programs.LMDB), lambda op: isinstance(op, ops.Sync) and op.how == how
    )
    report = explore(operations, commits_are_there, workers=2, stop_after=5)
    assert len(report.violations) >= 5


def test_descriptors_are_followed_by_every_road(recorded: Recorded) -> None:
    """`parse` compares the tree it built with the one the program left."""
    operations = recorded(programs.ROADS)
    syncs = [op.path for op in operations if isinstance(op, ops.Sync)]
    assert syncs == ["a/b/data", "a/b/data", "moved/b/renamed", "synced", "synced", ""]
    appended = [op.offset for op in operations if isinstance(op, ops.Write) and op.path == "synced"]
    assert appended == [0, 3]


def test_a_crowd_of_processes_and_threads_is_understood(recorded: Recorded) -> None:
    operations = recorded(programs.CROWD)
    assert len([op for op in operations if isinstance(op, ops.Ack)]) == 48

    def check(state: Path, acks: tuple[str, ...]) -> str | None:
        lost = [ack for ack in acks if not (state / "shared" / ack).exists()]
        # The folders' own names were never synced: what was promised is lost with them.
        return f"lost {lost}" if lost and (state / "shared" / lost[0]).parent.exists() else None

    report = explore(operations, check, budget=2000)
    assert not report.violations, report.violations[0]


def test_what_stood_in_the_root_before_is_durable(recorded: Recorded) -> None:
    before = {"state": b"a" * 3000, "other": b"untouched"}
    operations = recorded(programs.HASTY, before=before)

    def check(state: Path, acks: tuple[str, ...]) -> str | None:
        if (state / "other").read_bytes() != b"untouched":
            return "the other file changed"
        return None if (state / "state").exists() else "the old state is gone"

    report = explore(operations, check)
    assert not report.violations, report.violations[0]


def test_a_state_can_be_rebuilt_from_its_violation(recorded: Recorded, tmp_path: Path) -> None:
    operations = without(recorded(programs.REPLACE), is_file_sync)
    seen: dict[str, dict[str, bytes | None]] = {}

    def check(state: Path, acks: tuple[str, ...]) -> str | None:
        message = holds_what_was_acknowledged(state, acks)
        if message:
            seen[f"{message} {len(seen)}"] = read_tree(state)
        return message

    violation = explore(operations, check, stop_after=1).violations[0]
    (tmp_path / "again").mkdir()
    rebuild(operations, violation.choice, tmp_path / "again")
    assert [read_tree(tmp_path / "again")] == list(seen.values())
    assert violation.missing or violation.choice.kill


@pytest.mark.parametrize(("end", "code"), [(signal.SIGBUS, -7), (signal.SIGSTOP, -9)])
def test_a_check_that_dies_or_hangs_is_a_violation(
    recorded: Recorded, end: signal.Signals, code: int
) -> None:
    def check(state: Path, acks: tuple[str, ...]) -> str | None:
        if len(acks) == 2:
            os.kill(os.getpid(), end)
        return None

    operations = recorded(programs.REPLACE)
    report = explore(operations, check, workers=2, limit=0.3, stop_after=3)
    assert [violation.acks for violation in report.violations] == [("1", "2")] * 3
    assert messages(report).count(f"exit code {code}") == 3


def test_writes_through_a_mapping_are_refused(recorded: Recorded) -> None:
    with pytest.raises(TraceError, match="mapping of mapped"):
        recorded(programs.MAPPED)


def test_an_offset_moved_by_reads_is_noticed(recorded: Recorded) -> None:
    with pytest.raises(TraceError, match=r"do not explain .* \['half-read'\]"):
        recorded(programs.READER, before={"half-read": b"0123456789"})


def test_reads_can_be_followed(recorded: Recorded) -> None:
    operations = recorded(programs.READER, before={"half-read": b"0123456789"}, extra=("read",))
    assert [op.offset for op in operations if isinstance(op, ops.Write) and op.pid] == [5]


def test_a_program_that_fails_is_not_explored(recorded: Recorded) -> None:
    with pytest.raises(RecordError, match="out of luck"):
        recorded("raise SystemExit('out of luck')")
