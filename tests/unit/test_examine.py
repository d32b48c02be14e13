"""Examining: damage of any kind is named, nothing acknowledged is dropped in silence, and the
caller outlives it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.streams import STREAM, create, expected, read, rewrite, step, write
from tests.support.waiting import wait_until
from walrecover.errors import Corrupt, StorageFailed, Torn, UnsupportedVersion
from walrecover.journal import (
    START,
    Cursor,
    Reader,
    Rewound,
    StreamId,
    examine,
    examine_all,
    inspector,
    metapages,
)
from walrecover.journal.stream import key_of
from walrecover.processes import started_at

_PROJECT = Path(__file__).parents[2]
_PAGE = 4096
# Offsets in a meta page: the main tree's count of entries, its root, the transaction.
_VERSION, _MAP_BYTES, _ENTRIES, _ROOT, _TRANSACTION = 20, 32, 120, 128, 144


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """31 events in 16 groups."""
    return write(tmp_path, 30, group=2)


def _patch(path: Path, offset: int, data: bytes) -> None:
    with path.joinpath("data.mdb").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _transaction(path: Path, page: int) -> int:
    data = path.joinpath("data.mdb").read_bytes()
    return int.from_bytes(data[page * _PAGE + _TRANSACTION :][:8], "little")


def _newest(path: Path) -> int:
    """The number of the meta page that counts."""
    return int(_transaction(path, 1) > _transaction(path, 0))


def test_a_good_stream_has_no_problem(stream: Path) -> None:
    with Reader(stream) as reader:
        head = reader.head()
    report = examine(stream, STREAM)
    report.check()
    assert (report.first, report.last, report.entries, report.head) == (1, 31, 31, head)
    assert report.bytes == stream.joinpath("data.mdb").stat().st_size
    assert report.readable and not report.torn


def test_only_what_is_behind_the_cursor_is_read(stream: Path) -> None:
    rewrite(stream, lambda transaction: transaction.put(key_of(3), b"damaged"))
    with Reader(stream) as reader:
        cursor = reader.cursor_at(20)
    report = examine(stream, STREAM, cursor)
    assert (report.problem, report.first, report.last, report.entries) == (None, 21, 31, 11)
    assert not examine(stream, STREAM, report.head).readable
    assert examine(stream, STREAM, Cursor(20, bytes(16))).kind == "Rewound"
    with pytest.raises(Rewound):
        examine(stream, STREAM, Cursor(32, bytes(16))).check()


def test_a_living_writer_is_no_problem(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        for round in range(5):
            lsn = [journal.append(step(500 * round + number)) for number in range(1, 501)][-1]
            journal.sync(1)
            metapage_problem = metapages.inspect(journal.path)
            assert metapage_problem is None
            report = examine(journal.path, STREAM)
            assert report.problem is None and 1 <= report.last <= lsn


def test_every_truncation_is_torn_and_says_how_far_it_can_be_read(stream: Path) -> None:
    whole = stream.joinpath("data.mdb").read_bytes()
    with Reader(stream) as reader:
        cursors = [reader.cursor_at(lsn) for lsn in range(32)]
    lasts = set()
    for length in [0, 1, 100, _PAGE, *range(2 * _PAGE - 1, len(whole), _PAGE // 2)]:
        stream.joinpath("data.mdb").write_bytes(whole[:length])
        report = examine(stream, STREAM)
        with pytest.raises(Torn, match=r"data\.mdb"):
            report.check()
        assert report.torn and report.head == cursors[report.last]
        lasts.add(report.last)
    assert lasts != {0}


def test_a_record_that_is_damaged_is_named(stream: Path) -> None:
    data = stream.joinpath("data.mdb").read_bytes()
    with Reader(stream) as reader:
        reader.head()
    # The newest copy of event 31 lies in the last leaf that was written.
    at = data.rindex(b"WALR\1\0\0\0" + struct.pack("<Q", 31))
    _patch(stream, at + 50, bytes([data[at + 50] ^ 4]))
    report = examine(stream, STREAM)
    with pytest.raises(Corrupt, match="event 31: the checksum"):
        report.check()
    assert report.last == 30


def test_the_older_meta_page_taking_over_is_seen(stream: Path) -> None:
    """LMDB opens such a file without a word and has lost the newest group."""
    page = _newest(stream)
    whole = stream.joinpath("data.mdb").read_bytes()
    transaction = _transaction(stream, page)
    older = [transaction ^ 1 << bit for bit in range(64)]
    for changed in [value for value in older if value < transaction]:
        stream.joinpath("data.mdb").write_bytes(whole)
        _patch(stream, page * _PAGE + _TRANSACTION, struct.pack("<Q", changed))
        assert len(read(stream)) < 31, "nothing but the meta pages shows it"
        report = examine(stream, STREAM)
        assert report.kind == "Corrupt" and "transaction" in (report.problem or "")


def test_transactions_that_do_not_follow_one_another_are_seen(stream: Path) -> None:
    page = _newest(stream)
    later = _transaction(stream, page) + (1 << 20)
    _patch(stream, page * _PAGE + _TRANSACTION, struct.pack("<Q", later))
    assert "do not follow one another" in (examine(stream, STREAM).problem or "")


def test_a_transaction_that_steps_back_behind_its_forerunner_is_seen(tmp_path: Path) -> None:
    """One bit turns n into n - 2, and n - 2, n - 1 do follow one another."""
    path = write(tmp_path, 5)
    page, transaction = _newest(path), _transaction(path, _newest(path))
    assert transaction & 2
    _patch(path, page * _PAGE + _TRANSACTION, struct.pack("<Q", transaction ^ 2))
    assert len(read(path)) == 5
    assert "counts more than the next" in (examine(path, STREAM).problem or "")


def test_a_count_that_does_not_fit_is_seen(stream: Path) -> None:
    _patch(stream, _newest(stream) * _PAGE + _ENTRIES, struct.pack("<Q", 33))
    report = examine(stream, STREAM)
    assert (report.kind, report.last) == ("Corrupt", 31)
    assert "counts 33 events, and 31 are there" in (report.problem or "")


def test_an_older_root_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    old = 1 - _newest(path)
    data = path.joinpath("data.mdb").read_bytes()
    root = data[old * _PAGE + _ROOT :][:8]
    _patch(path, _newest(path) * _PAGE + _ROOT, root)
    assert "counts 6 events" in (examine(path, STREAM).problem or "")


def test_what_ends_the_child_does_not_end_the_caller(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut(stream)
    monkeypatch.setattr(metapages, "inspect", lambda path: None)
    report = examine(stream, STREAM)
    assert report.kind == "Corrupt" and "SIGBUS" in (report.problem or ""), report
    assert f"behind event {report.last} " in (report.problem or "")


def _cut(path: Path) -> None:
    """Reading it is a SIGBUS."""
    os.truncate(path / "data.mdb", 3 * _PAGE)


def test_lmdb_of_another_format_is_unsupported(stream: Path) -> None:
    for page in (0, 1):
        _patch(stream, page * _PAGE + _VERSION, struct.pack("<I", 2))
    with pytest.raises(UnsupportedVersion, match="format 2"):
        examine(stream, STREAM).check()
    _patch(stream, _VERSION, struct.pack("<I", 1))
    with pytest.raises(Corrupt, match="different formats"):
        examine(stream, STREAM).check()


@pytest.mark.parametrize("size", [1 << 12, (1 << 26) + 1, 1 << 47, 1 << 63])
def test_a_map_that_cannot_be_is_corrupt(stream: Path, size: int) -> None:
    _patch(stream, _newest(stream) * _PAGE + _MAP_BYTES, struct.pack("<Q", size))
    assert examine(stream, STREAM).kind == "Corrupt"


@pytest.mark.parametrize("damage", ["missing", "folder", "link", "zeros", "text"])
def test_what_is_no_environment_is_corrupt(stream: Path, damage: str) -> None:
    file = stream / "data.mdb"
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "link":
        stream.parent.joinpath("elsewhere").write_bytes(whole)
        file.symlink_to(stream.parent / "elsewhere")
    elif damage != "missing":
        file.write_bytes(bytes(len(whole)) if damage == "zeros" else b"text " * 5000)
    report = examine(stream, STREAM)
    assert report.kind == "Corrupt" and str(stream) in (report.problem or "")
    assert not report.readable


def test_one_bad_stream_among_many_does_not_hide_the_others(tmp_path: Path) -> None:
    streams = [StreamId(3, "9f2c01d7", f"rank-{rank}") for rank in range(8)]
    paths = [(stream, write(tmp_path, 10, stream)) for stream in streams]
    for _, path in paths[1::3]:  # each ends the child that reads it
        _cut(path)
    reports = examine_all(paths)
    assert list(reports) == streams
    assert [bool(report.problem) for report in reports.values()] == [
        index % 3 == 1 for index in range(8)
    ]


def test_nothing_to_examine() -> None:
    assert examine_all([]) == {}


def test_a_child_that_hangs_is_a_problem(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "_SPAWNED", _child("time.sleep(60)"))
    monkeypatch.setattr(inspector, "_may_fork", lambda: False)
    report = examine(stream, STREAM, patience=0.5)
    assert report.kind == "Corrupt" and "does not end" in (report.problem or "")


def test_a_child_that_somebody_killed_proves_no_damage(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "_SPAWNED", _child("os.kill(os.getpid(), 9)"))
    monkeypatch.setattr(inspector, "_may_fork", lambda: False)
    with pytest.raises(StorageFailed, match="ended with -9"):
        examine(stream, STREAM).check()


def test_a_child_that_cannot_start_is_no_verdict(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "_SPAWNED", "raise SystemExit(7)")
    monkeypatch.setattr(inspector, "_may_fork", lambda: False)
    with pytest.raises(StorageFailed, match=r"cannot start \(7\)"):
        examine(stream, STREAM)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_child_that_cannot_start_says_why(
    stream: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(inspector, "_may_fork", lambda: way == "fork")
    raises = "raise OSError(24, 'Too many\\nopen files')"
    if way == "fork":
        monkeypatch.setattr(inspector, "_die_quietly", lambda: exec(raises))
    else:
        said = inspector._SPAWNED.replace("inspector.serve()", raises)
        monkeypatch.setattr(inspector, "_SPAWNED", said)
    said = r"cannot start \(1: OSError: \[Errno 24\] Too many open files\)"
    with pytest.raises(StorageFailed, match=said):
        examine(stream, STREAM)


def _child(does: str) -> str:
    """A child that begins with the first stream and then does something else."""
    return (
        "import os, sys, time; sys.path[:] = sys.argv[1:]\n"
        "from walrecover.journal import inspector\n"
        "from walrecover.journal.stream import START\n"
        f"inspector._say(1, inspector.Said(0, START)); {does}"
    )


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The child that waits; any other that is started finds a broken program."""
    monkeypatch.setattr(inspector, "_may_fork", lambda: False)
    inspector.prepare()
    monkeypatch.setattr(inspector, "_SPAWNED", "raise SystemExit(7)")
    pid = inspector.prepared()
    assert pid is not None
    yield pid
    inspector.dismiss()


def test_a_prepared_child_examines_once(stream: Path, prepared: int) -> None:
    inspector.prepare()
    assert inspector.prepared() == prepared, "a second one was started beside it"
    assert examine(stream, STREAM).problem is None
    assert inspector.prepared() is None and started_at(prepared) is None
    with pytest.raises(StorageFailed, match=r"cannot start \(7\)"):
        examine(stream, STREAM)


@pytest.mark.parametrize("reaped", [False, True])
def test_a_prepared_child_that_somebody_ended_is_replaced(
    stream: Path, prepared: int, reaped: bool
) -> None:
    os.kill(prepared, signal.SIGKILL)
    os.waitid(os.P_PID, prepared, os.WEXITED | (0 if reaped else os.WNOWAIT))
    with pytest.raises(StorageFailed, match=r"cannot start \(7\)"):  # by the new one
        examine(stream, STREAM)


def test_a_prepared_child_ends_with_its_parent() -> None:
    code = (
        "from walrecover.journal import inspector; inspector.prepare(); print(inspector.prepared())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_PROJECT, capture_output=True, text=True, timeout=60
    )
    pid = int(done.stdout)
    wait_until(lambda: started_at(pid) is None, 10.0)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_both_children_say_the_same(tmp_path: Path, way: str) -> None:
    """In a process of its own, which has one thread; damage must not print or dump core there."""
    good = write(tmp_path, 20)
    bad = write(tmp_path, 20, StreamId(4, "00000000", "rank-0"))
    _cut(bad)
    code = (
        "import faulthandler, sys; from pathlib import Path; faulthandler.enable()\n"
        "from walrecover.journal import examine_all, find_streams, inspector\n"
        "assert inspector._may_fork()\n"
        "if sys.argv[2] == 'spawn': inspector._may_fork = lambda: False\n"
        "for report in examine_all(find_streams(Path(sys.argv[1]))).values(): print(report.kind)\n"
        "assert 'subprocess' not in sys.modules or sys.argv[2] == 'spawn'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), way],
        cwd=_PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("\nTorn\n", "", 0)
    assert good.exists()


def test_random_flipped_bits_give_the_same_result_a_named_loss_or_a_refusal(
    tmp_path: Path,
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    # In a process of its own, whose one thread lets each child be a fork.
    code = f"from tests.unit.test_examine import flip_bits; flip_bits({str(tmp_path)!r}, {seed})"
    subprocess.run([sys.executable, "-c", code], cwd=_PROJECT, check=True, timeout=300)


def flip_bits(root: str, seed: int, count: int = 400) -> None:
    source = random.Random(seed)
    path = write(Path(root), 40, group=3)
    whole = path.joinpath("data.mdb").read_bytes()
    with Reader(path) as reader:
        chains = [reader.cursor_at(lsn) for lsn in range(42)]
    problems = 0
    for number in range(count):
        # Every other one in a meta page, where damage does the most.
        where = source.randrange(2 * _PAGE if number % 2 else len(whole))
        if number % 4 == 1:
            where = where // _PAGE * _PAGE + where % 160
        bit = 1 << source.randrange(8)
        _patch(path, where, bytes([whole[where] ^ bit]))
        report = examine(path, STREAM)
        _patch(path, where, whole[where : where + 1])
        assert report.head == chains[report.last], (where, bit)
        assert report.problem is not None or report.last == 41, f"{where}, {bit}: dropped silently"
        problems += report.problem is not None
    assert count / 20 < problems < count * 19 / 20


def test_examining_writes_nothing_to_the_stream(stream: Path) -> None:
    before = stream.joinpath("data.mdb").read_bytes()
    examine(stream, STREAM).check()
    assert stream.joinpath("data.mdb").read_bytes() == before


def test_what_was_readable_can_be_read_after_the_report(stream: Path) -> None:
    whole = stream.joinpath("data.mdb").read_bytes()
    for length in range(3 * _PAGE, len(whole), _PAGE):
        stream.joinpath("data.mdb").write_bytes(whole[:length])
        report = examine(stream, STREAM)
        if report.readable:
            # In a child, because the test must outlive a mistake.
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    signal.signal(signal.SIGBUS, signal.SIG_DFL)
                    with Reader(stream) as reader:
                        found = list(reader.read(upto=report.last))
                    status = 0 if found == expected(report.last) else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert START.lsn == 0


def test_the_meta_pages_of_a_file_that_lmdb_took_back_are_good(tmp_path: Path) -> None:
    """After a failed meta write LMDB puts the old transaction and last page back, and no more."""
    path = write(tmp_path, 200)
    file = path / "data.mdb"
    shutil.copy(file, tmp_path / "whole")
    page = _newest(path)
    newest = _transaction(path, page)
    _patch(path, page * _PAGE + _TRANSACTION - 8, struct.pack("<QQ", 2, newest - 2))
    assert metapages.inspect(path) is None
