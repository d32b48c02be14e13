"""Processes killed, stopped short or refused by the disk at every step of the journal.

What `sync` acknowledged is there and reads whole; a stream exists entirely or not at all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import lmdb
import pytest

from tests.streams import STREAM, create, expected, path_of, read, step
from tests.support.waiting import wait_until
from walrecover.failpoints import ENVIRONMENT, NAMES
from walrecover.journal import Reader, examine, find_streams

_ROOT = Path(__file__).parents[2]
_APPENDED = 60

# Appends steps, syncs after every third, and prints every LSN that was acknowledged. A storage
# failure ends it with 3; what is printed then was acknowledged before.
_WRITER = f"""
import os, sys
from pathlib import Path
from tests.streams import create, step
from walrecover.errors import StorageFailed

def say(text):
    os.write(1, f"{{text}}\\n".encode())

try:
    with create(Path(sys.argv[1])) as journal:
        say(1)
        for number in range(1, {_APPENDED} + 1):
            journal.append(step(number))
            if number % 3 == 0:
                say(journal.sync().lsn)
    say(journal.durable)
except StorageFailed as error:
    say("failed: " + str(error))
    sys.exit(3)
"""


class Ended(NamedTuple):
    status: int
    acknowledged: int
    failure: str


def _write(root: Path, failpoint: str = "") -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", _WRITER, str(root)],
        cwd=_ROOT,
        env={**os.environ, ENVIRONMENT: failpoint},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.split("\n")
    numbers = [int(line) for line in lines if line.isdecimal()]
    failures = [line for line in lines if line.startswith("failed: ")]
    return Ended(done.returncode, max(numbers, default=0), "".join(failures))


def _recovered(root: Path) -> int:
    """The newest LSN of the stream, which must be whole; 0 where there is no stream."""
    streams = find_streams(root)
    if not streams:
        return 0
    assert streams == [(STREAM, path_of(root))]
    report = examine(path_of(root), STREAM)
    assert report.problem is None
    assert read(path_of(root)) == expected(report.last)
    return report.last


_APPENDING = [name for name in NAMES if name.startswith("journal.") and "create" not in name]
_CREATING = [name for name in NAMES if name.startswith("journal.create.")]


def test_without_a_failpoint_everything_is_there(tmp_path: Path) -> None:
    assert _write(tmp_path) == (0, _APPENDED + 1, "")
    assert _recovered(tmp_path) == _APPENDED + 1


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("action", ["kill", "raise", "enospc"])
@pytest.mark.parametrize("point", _APPENDING)
def test_what_was_acknowledged_is_there_after_a_crash_at(
    tmp_path: Path, point: str, action: str, count: int
) -> None:
    ended = _write(tmp_path, f"{point}:{action}:{count}")
    if action == "kill":
        assert ended.status == -signal.SIGKILL
    elif (point, action) == ("journal.append", "raise"):
        assert ended.status == 1  # the caller's own exception, in its own thread
    else:
        assert ended.status == 3 and ended.failure
    assert ended.acknowledged <= _recovered(tmp_path) <= _APPENDED + 1
    assert ended.acknowledged >= 1


@pytest.mark.parametrize("action", ["kill", "raise", "enospc"])
@pytest.mark.parametrize("point", _CREATING)
def test_a_stream_is_whole_or_absent_after_a_crash_at(
    tmp_path: Path, point: str, action: str
) -> None:
    ended = _write(tmp_path, f"{point}:{action}")
    assert ended.acknowledged == 0
    assert _recovered(tmp_path) == (1 if point == "journal.create.renamed" else 0)
    if point == "journal.create.built":
        # The name is free, and what the crash left is in nobody's way.
        assert _write(tmp_path) == (0, _APPENDED + 1, "")
        assert _recovered(tmp_path) == _APPENDED + 1


def test_killed_between_commit_and_sync_keeps_acknowledged_events(tmp_path: Path) -> None:
    ended = _write(tmp_path, "journal.commit.after:kill:3")
    assert ended.status == -signal.SIGKILL
    # The group itself survives the process, though nobody was told.
    assert _recovered(tmp_path) > ended.acknowledged


def test_killed_before_its_commit_a_group_is_gone_as_a_whole(tmp_path: Path) -> None:
    ended = _write(tmp_path, "journal.commit.before:kill:3")
    assert ended.status == -signal.SIGKILL
    assert _recovered(tmp_path) >= ended.acknowledged


def test_a_refused_sync_is_not_acknowledged_and_not_tried_again(tmp_path: Path) -> None:
    ended = _write(tmp_path, "journal.sync.after:enospc:2")
    assert ended.status == 3
    assert "journal.sync.after" in ended.failure
    assert ended.acknowledged < _APPENDED


def test_killed_at_any_moment_keeps_acknowledged_events(tmp_path: Path) -> None:
    for round in range(10):
        root = tmp_path / str(round)
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER.replace(f"{_APPENDED} + 1", "10**6"), str(root)],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            acknowledged = 0
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged >= 10 * round + 1:
                    process.kill()
                    break
            acknowledged = max([acknowledged, *_whole_numbers(process.stdout.read())])
        assert process.returncode == -signal.SIGKILL
        assert _recovered(root) >= acknowledged


def _whole_numbers(text: str) -> list[int]:
    return [int(line) for line in text.split("\n")[:-1]]


def test_a_killed_reader_does_not_pin_pages_for_ever(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        with subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "import lmdb, sys, time\n"
                "environment = lmdb.open(sys.argv[1], readonly=True, lib_version=0)\n"
                "with environment.begin() as transaction:\n"
                "    transaction.stat()\n"
                "    print('reading', flush=True)\n"
                "    time.sleep(60)\n",
                str(journal.path),
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as reader:
            assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
            pinned = _growth(journal, 200)
            reader.kill()
        for _ in range(300):
            journal.sync(journal.append(step(1)))
        wait_until(lambda: "no active readers" in journal._environment.handle.readers())
        assert _growth(journal, 200) < pinned / 4
        with Reader(journal.path) as whole:
            assert whole.head().lsn == journal.durable


def _growth(journal: object, commits: int) -> int:
    file = journal.path / "data.mdb"  # type: ignore[attr-defined]
    before = file.stat().st_size
    for _ in range(commits):
        journal.sync(journal.append(step(1)))  # type: ignore[attr-defined]
    return int(file.stat().st_size - before)


def test_a_reader_that_is_stopped_inside_a_transaction_blocks_no_writer(tmp_path: Path) -> None:
    with (
        create(tmp_path) as journal,
        subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "import lmdb, os, signal, sys\n"
                "environment = lmdb.open(sys.argv[1], readonly=True, lib_version=0)\n"
                "with environment.begin() as transaction:\n"
                "    print('reading', flush=True)\n"
                "    os.kill(os.getpid(), signal.SIGSTOP)\n"
                "    print(transaction.stat()['entries'])\n",
                str(journal.path),
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as reader,
    ):
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
        for number in range(1, 51):
            journal.sync(journal.append(step(number)), timeout=20)
        reader.send_signal(signal.SIGCONT)
        assert reader.stdout.read() == "1\n", "it still sees what it saw"
    assert read(path_of(tmp_path)) == expected(51)


def test_a_writer_killed_while_followed_leaves_the_follower_a_whole_stream(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER.replace(f"{_APPENDED} + 1", "10**6"), str(tmp_path)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        with Reader(path_of(tmp_path)) as reader:
            cursor, seen = reader.cursor_at(0), []
            while acknowledged < 200:
                acknowledged = int(process.stdout.readline())
                seen += reader.read(cursor)
                cursor = reader.cursor_at(len(seen))
                assert len(seen) >= acknowledged
            process.kill()
            acknowledged = max([acknowledged, *_whole_numbers(process.stdout.read())])
            process.wait()
            seen += reader.read(cursor)
            assert len(seen) >= acknowledged
            assert seen == expected(len(seen))


def test_lmdb_reports_no_active_readers_as_the_tests_expect(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "any"), lib_version=0) as environment:
        assert "no active readers" in environment.readers()
