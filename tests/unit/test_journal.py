"""The journal: its three states of an event, its one writer, its readers, its failures."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.streams import (
    create,
    expected,
    first_event,
    path_of,
    read,
    rewrite,
    step,
    write,
)
from tests.support.waiting import wait_until
from walrecover import failpoints
from walrecover.codec import chain_of, seal, unseal
from walrecover.errors import BadInput, Corrupt, StorageFailed, UnsupportedVersion
from walrecover.events import StepCompleted, encode
from walrecover.journal import (
    START,
    Cursor,
    Journal,
    Reader,
    Rewound,
    StreamId,
    committer,
    find_streams,
    writer,
)
from walrecover.journal.stream import key_of


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = create(tmp_path)
    yield journal
    failpoints.arm("")
    if journal.failure is None:
        journal.close()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Commits wait until this is set."""
    released = threading.Event()
    commit = committer.Committer.commit

    def wait_and_commit(self: committer.Committer, group: list[StepCompleted]) -> None:
        assert released.wait(20)
        commit(self, group)

    monkeypatch.setattr(committer.Committer, "commit", wait_and_commit)
    return released


# --- writing ---------------------------------------------------------------------------------


def test_a_new_stream_holds_its_first_event_durably(journal: Journal) -> None:
    assert (journal.appended, journal.committed, journal.durable) == (1, 1, 1)
    assert read(journal.path) == expected(1)


def test_events_are_numbered_in_order_and_come_back(journal: Journal) -> None:
    assert [journal.append(step(number)) for number in range(1, 100)] == list(range(2, 101))
    cursor = journal.sync()
    assert cursor.lsn == journal.durable == journal.committed == 100
    assert read(journal.path) == expected(100)
    with Reader(journal.path) as reader:
        assert reader.head() == reader.cursor_at(100) == cursor


def test_many_threads_get_numbers_without_gaps_each_in_its_own_order(journal: Journal) -> None:
    numbers: dict[int, list[int]] = {}

    def append(thread: int) -> None:
        numbers[thread] = [journal.append(StepCompleted(step=1, epoch=thread)) for _ in range(500)]

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.sync()
    assert sorted(itertools.chain(*numbers.values())) == list(range(2, 2002))
    by_lsn = dict(read(journal.path))
    for number, lsns in numbers.items():
        assert lsns == sorted(lsns)
        assert all(by_lsn[lsn] == StepCompleted(step=1, epoch=number) for lsn in lsns)


def test_append_does_not_wait_for_the_disk(slow_disk: threading.Event, journal: Journal) -> None:
    assert journal.append(step(1)) == 2
    assert (journal.appended, journal.committed) == (2, 1)
    slow_disk.set()
    journal.sync()


def test_a_committed_group_is_durable_once_a_later_one_is_committed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_SECONDS", 1000.0)
    journal.append(step(1))
    wait_until(lambda: journal.committed == 2)
    assert journal.durable == 1
    journal.append(step(2))
    wait_until(lambda: journal.committed == 3)
    wait_until(lambda: journal.durable == 2)
    assert journal.sync(2).lsn == 2, "asks for nothing that is not needed"
    assert journal.sync().lsn == 3


@pytest.mark.parametrize("gather", [0.0, writer.GATHER_SECONDS])
def test_an_event_after_a_pause_is_committed_by_itself(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, gather: float
) -> None:
    monkeypatch.setattr(writer, "GATHER_SECONDS", gather)
    journal.sync(journal.append(step(1)))
    for number in (2, 3):
        wait_until(lambda: journal._asleep)  # for good: nothing is left to make durable
        lsn = journal.append(step(number))
        wait_until(lambda lsn=lsn: journal.durable == lsn)  # type: ignore[misc]
    assert read(journal.path) == expected(4)


def test_events_gather_and_sync_does_not_wait_for_that(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GATHER_SECONDS", 1000.0)
    wait_until(lambda: journal._asleep)
    lsn = journal.append(step(1))
    wait_until(lambda: journal.committed == lsn)
    groups = []
    commit = journal._committer.commit
    journal._committer.commit = lambda group: (groups.append(len(group)), commit(group))[1]  # type: ignore[func-returns-value, method-assign, misc]
    for number in range(2, 12):
        journal.append(step(number))
    assert (groups, journal.committed) == ([], lsn)
    journal.sync()
    assert groups == [10]
    journal.append(step(12))
    journal.close()
    assert groups == [10, 1]


def test_a_quiet_journal_becomes_durable_by_itself(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.01)
    journal.append(step(1))
    wait_until(lambda: journal.durable == 2)
    assert read(journal.path) == expected(2)


def test_sync_says_when_it_took_too_long_and_the_event_may_still_become_durable(
    slow_disk: threading.Event, journal: Journal
) -> None:
    lsn = journal.append(step(1))
    with pytest.raises(StorageFailed, match=r"event 2 is not durable after 0\.01 s"):
        journal.sync(timeout=0.01)
    slow_disk.set()
    assert journal.sync(lsn).lsn == 2


def test_nothing_is_acknowledged_before_the_disk_has_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    make_durable = committer.Committer.make_durable

    def wait_and_make_durable(self: committer.Committer) -> None:
        assert released.wait(20)
        make_durable(self)

    monkeypatch.setattr(committer.Committer, "make_durable", wait_and_make_durable)
    journal.append(step(1))
    with pytest.raises(StorageFailed, match="not durable"):
        journal.sync(timeout=0.05)
    assert journal.durable == 1
    released.set()
    assert journal.sync(timeout=20).lsn == 2


def test_sync_refuses_an_event_that_was_never_appended(journal: Journal) -> None:
    with pytest.raises(BadInput, match="event 2 was never appended"):
        journal.sync(2)


def test_envelopes_are_the_sealed_bytes(journal: Journal) -> None:
    for number in range(1, 10):
        journal.append(step(number))
    journal.sync()
    envelopes = journal.envelopes(3, 7)
    with Reader(journal.path) as reader:
        chain = reader.cursor_at(3).chain
    for lsn, envelope in zip(range(4, 8), envelopes, strict=True):
        assert unseal(envelope, lsn=lsn, attempt=3, chain=chain) == encode(step(lsn - 1))
        chain = chain_of(envelope)
    assert journal.envelopes(10, 10) == []
    with pytest.raises(BadInput, match="not all committed"):
        journal.envelopes(3, 11)


def test_the_map_grows_while_a_reader_of_this_process_and_one_of_another_read(
    tmp_path: Path,
) -> None:
    with create(tmp_path, map_bytes=1 << 16) as journal, Reader(journal.path) as reader:
        with _follower(journal.path, upto=5001) as follower:
            cursor, seen = START, []
            for number in range(1, 5001):
                journal.append(step(number))
                if number % 500 == 0:
                    journal.sync()
                    seen += reader.read(cursor)
                    cursor = reader.cursor_at(number + 1)
            assert seen == expected(5001)
            assert follower.stdout is not None
            assert follower.stdout.read() == "5001\n"
        assert journal.path.joinpath("data.mdb").stat().st_size > 1 << 19


def test_a_group_larger_than_the_map_is_written(tmp_path: Path) -> None:
    with create(tmp_path, map_bytes=1 << 15) as journal:
        journal.append(StepCompleted(step=1, batch=bytes(1 << 20)))
        journal.sync()
    assert read(journal.path)[1] == (2, StepCompleted(step=1, batch=bytes(1 << 20)))


def test_what_was_appended_before_a_normal_exit_is_kept(tmp_path: Path) -> None:
    _run(f"""
        from pathlib import Path
        from tests.streams import create, step
        journal = create(Path({str(tmp_path)!r}))
        for number in range(1, 3001):
            journal.append(step(number))
        raise SystemExit(0)
    """)
    assert read(path_of(tmp_path)) == expected(3001)


def test_close_keeps_everything_and_may_be_called_twice(journal: Journal) -> None:
    for number in range(1, 3000):
        journal.append(step(number))
    journal.close()
    journal.close()
    assert journal.durable == 3000
    assert read(journal.path) == expected(3000)
    for use in (lambda: journal.append(step(1)), lambda: journal.envelopes(0, 1)):
        with pytest.raises(BadInput, match="closed"):
            use()


# --- creating --------------------------------------------------------------------------------


def test_a_stream_is_never_reopened(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    before = path.joinpath("data.mdb").read_bytes()
    with pytest.raises(BadInput, match="exists; streams are never reopened"):
        create(tmp_path)
    assert path.joinpath("data.mdb").read_bytes() == before
    assert os.listdir(path.parent) == ["rank-0"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, kind: str) -> None:
    path = path_of(tmp_path)
    path.parent.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    path.symlink_to(other) if kind == "link" else path.write_text("")
    with pytest.raises(BadInput, match="never reopened"):
        create(tmp_path)
    assert os.listdir(path.parent) == ["rank-0"]
    assert os.listdir(other) == []


def test_a_directory_that_cannot_be_made_is_a_storage_failure(tmp_path: Path) -> None:
    tmp_path.joinpath("a3-9f2c01d7").write_text("")
    with pytest.raises(StorageFailed, match="a3-9f2c01d7"):
        create(tmp_path)


def test_the_first_event_must_be_of_the_attempt(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="attempt 3, not 4"):
        Journal.create(path_of(tmp_path), attempt=4, first=first_event())


def test_the_engine_is_pinned_against_the_environment(tmp_path: Path) -> None:
    _run(
        f"""
        from pathlib import Path
        from tests.streams import write
        write(Path({str(tmp_path)!r}), 3)
        """,
        LMDB_DEFAULT_LIB_VERSION="1",
    )
    assert read(path_of(tmp_path)) == expected(4)


def test_files_are_private(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert path.stat().st_mode & 0o077 == 0
    assert path.joinpath("data.mdb").stat().st_mode & 0o077 == 0


# --- failing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["enospc", "raise"])
@pytest.mark.parametrize(
    "point", ["journal.commit.before", "journal.commit.after", "journal.sync.after"]
)
def test_a_failed_stream_says_so_from_then_on_and_keeps_what_was_durable(
    journal: Journal, point: str, action: str
) -> None:
    journal.append(step(1))
    journal.sync()
    failpoints.arm(f"{point}:{action}")
    journal.append(step(2))
    with pytest.raises(StorageFailed, match="can no longer be written") as failed:
        journal.sync()
    assert failed.value.__cause__ is not None
    passed = failpoints.passages()
    with pytest.raises(StorageFailed, match="can no longer be written"):
        journal.append(step(3))
    with pytest.raises(StorageFailed, match="can no longer be written"):
        journal.sync()
    assert journal.sync(2).lsn == 2, "what was durable is still acknowledged"
    with pytest.raises(StorageFailed, match="can no longer be written"):
        journal.close()
    assert failpoints.passages() == passed, "nothing is tried again"
    assert read(journal.path)[:2] == expected(2)


def test_an_event_that_cannot_be_encoded_fails_the_stream_aloud(journal: Journal) -> None:
    journal.append(StepCompleted(step=1, scalars={"loss": object()}))  # type: ignore[dict-item]
    with pytest.raises(StorageFailed, match="object"):
        journal.sync()


def test_a_failure_on_append_is_a_storage_failure(journal: Journal) -> None:
    failpoints.arm("journal.append:enospc")
    with pytest.raises(StorageFailed):
        journal.append(step(1))
    assert journal.append(step(1)) == 2


def test_sync_wakes_when_the_stream_fails_meanwhile(
    slow_disk: threading.Event, journal: Journal
) -> None:
    journal.append(step(1))
    failpoints.arm("journal.commit.before:enospc")
    threading.Timer(0.05, slow_disk.set).start()
    with pytest.raises(StorageFailed):
        journal.sync()


# --- forking ---------------------------------------------------------------------------------


def test_a_forked_child_is_told_and_the_parent_goes_on(journal: Journal) -> None:
    """DataLoader workers fork while the writer thread may hold any lock."""
    for number in range(1, 51):
        journal.append(step(number))
        if number % 10 == 0:
            assert _in_fork(lambda: _use_in_child(journal)) == 0
    journal.sync()
    journal.close()
    assert read(journal.path) == expected(51)


def _use_in_child(journal: Journal) -> None:
    for use in (
        lambda: journal.append(step(1)),
        journal.sync,
        lambda: journal.envelopes(0, 1),
        lambda: Reader(journal.path),
    ):
        try:
            use()
        except BadInput as error:
            assert "fork" in str(error)
        else:
            raise AssertionError("a forked child used the journal")
    journal.close()
    other = StreamId(3, "9f2c01d7", f"child-{os.getpid()}")
    with create(journal.path.parent.parent, other) as own:
        own.append(step(1))


def test_a_forked_child_that_exits_normally_leaves_the_parents_stream_alone(
    tmp_path: Path,
) -> None:
    _run(f"""
        import os, sys
        from pathlib import Path
        from tests.streams import create, step
        journal = create(Path({str(tmp_path)!r}))
        for number in range(1, 101):
            journal.append(step(number))
            if number % 20 == 0:
                pid = os.fork()
                if pid == 0:
                    sys.exit(0)  # runs atexit and frees every object
                assert os.waitpid(pid, 0)[1] == 0
        journal.sync()
    """)
    assert read(path_of(tmp_path)) == expected(101)


def _in_fork(work: object) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 512])
def test_reading_from_any_cursor_to_any_event(tmp_path: Path, chunk: int) -> None:
    path = write(tmp_path, 30, group=10)
    with Reader(path, chunk=chunk) as reader:
        for after in (0, 1, 7, 30, 31):
            cursor = reader.cursor_at(after)
            assert list(reader.read(cursor)) == expected(31)[after:]
            for upto in (0, 1, 8, 31, 100):
                assert list(reader.read(cursor, upto)) == expected(min(upto, 31))[after:]


@pytest.mark.parametrize("chunk", [3, 512])
def test_batches_carry_the_cursor_to_go_on_from(tmp_path: Path, chunk: int) -> None:
    path = write(tmp_path, 30, group=10)
    with Reader(path, chunk=chunk) as reader:
        seen = []
        for events, cursor in reader.batches():
            seen += events
            assert cursor == reader.cursor_at(events[-1][0])
        assert seen == expected(31)


def test_a_reader_of_the_writers_process_shares_its_environment(journal: Journal) -> None:
    with Reader(journal.path) as one, Reader(journal.path) as other:
        journal.append(step(1))
        journal.sync()
        assert list(one.read()) == list(other.read()) == expected(2)
        one.close()
        journal.close()
        assert list(other.read()) == expected(2), "open as long as somebody holds it"
    assert read(journal.path) == expected(2)


def test_following_a_living_writer_from_another_process(journal: Journal) -> None:
    with _follower(journal.path, upto=2001) as follower:
        for number in range(1, 2001):
            journal.append(step(number))
        journal.sync()
        assert follower.stdout is not None
        assert follower.stdout.read() == "2001\n"


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, 30)
    before = path.joinpath("data.mdb").read_bytes()
    assert len(read(path)) == 31
    assert path.joinpath("data.mdb").read_bytes() == before
    assert sorted(os.listdir(path)) == ["data.mdb", "lock.mdb"]


def test_a_cursor_into_a_tail_that_a_power_cut_took_is_rewound(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        journal.append(step(1))
        journal.sync()
        shutil.copytree(journal.path, tmp_path / "before")
        journal.append(step(2))
        cursor = journal.sync()
    shutil.rmtree(journal.path)
    shutil.move(tmp_path / "before", journal.path)
    with Reader(journal.path) as reader:
        with pytest.raises(Rewound, match="event 3 is gone"):
            list(reader.read(cursor))
        assert list(reader.read(reader.cursor_at(2))) == []


def test_a_cursor_whose_event_came_back_as_another_is_rewound(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    with Reader(path) as reader:
        with pytest.raises(Rewound, match="not the one that was read before"):
            list(reader.read(Cursor(4, bytes(16))))
        with pytest.raises(Rewound):
            list(reader.read(Cursor(0, b"x" * 16)))


# --- damage that LMDB itself does not see ------------------------------------------------------


def _change_byte(transaction: lmdb.Transaction[bytes], lsn: int, index: int) -> None:
    value = bytearray(transaction.get(key_of(lsn)) or b"")
    value[index] ^= 1
    transaction.put(key_of(lsn), bytes(value))


@pytest.mark.parametrize("lsn", [1, 2, 20, 31])
@pytest.mark.parametrize("chunk", [1, 8, 512])
def test_a_damaged_event_stops_the_reading_there_after_the_good_ones(
    tmp_path: Path, lsn: int, chunk: int
) -> None:
    path = write(tmp_path, 30, group=10)
    for index in (0, 8, 16, 20, 36, 40, -1):
        rewrite(path, lambda transaction, index=index: _change_byte(transaction, lsn, index))
        with Reader(path, chunk=chunk) as reader:
            seen = []
            with pytest.raises(Corrupt, match=f"event {lsn}"):
                for numbered in reader.read():
                    seen.append(numbered)
            assert seen == expected(lsn - 1)
            seen = []
            with pytest.raises(Corrupt, match=f"event {lsn}"):
                for events, _ in reader.batches():
                    seen += events
            assert seen == expected(lsn - 1)
        rewrite(path, lambda transaction, index=index: _change_byte(transaction, lsn, index))
    assert read(path) == expected(31)


def test_a_missing_event_stops_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path, 30)
    rewrite(path, lambda transaction: transaction.delete(key_of(20)))
    with Reader(path) as reader, pytest.raises(Corrupt):
        list(reader.read())


def test_an_event_under_a_wrong_number_stops_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path, 30)
    rewrite(path, lambda transaction: transaction.put(key_of(50), b"foreign"))
    with Reader(path) as reader:
        with pytest.raises(Corrupt):
            list(reader.read())
        with pytest.raises(Corrupt):
            reader.head()


def test_an_event_of_a_newer_format_is_unsupported_and_not_corrupt(tmp_path: Path) -> None:
    from walrecover import codec

    path = write(tmp_path, 5)
    with Reader(path) as reader:
        cursor = reader.head()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "FORMAT", 2)
        newer = seal(encode(step(6)), lsn=7, attempt=3, chain=cursor.chain)
    rewrite(path, lambda transaction: transaction.put(key_of(7), newer))
    with Reader(path) as reader:
        seen = []
        with pytest.raises(UnsupportedVersion, match="event 7: format 2"):
            for numbered in reader.read():
                seen.append(numbered)
    assert seen == expected(6)


def test_a_whole_envelope_that_holds_no_event_is_corrupt_there(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    with Reader(path) as reader:
        cursor = reader.head()
    odd = seal(b"\x81\xa4type\xadStepCompleted", lsn=7, attempt=3, chain=cursor.chain)
    rewrite(path, lambda transaction: transaction.put(key_of(7), odd))
    with Reader(path) as reader:
        for way in (reader.read, reader.batches):
            seen = []
            with pytest.raises(Corrupt, match="not an event"):
                for item in way():
                    seen.append(item)
            assert len(seen) in (1, 6)


@pytest.mark.parametrize("other", [(3, "9f2c01d8", "rank-0"), (3, "9f2c01d7", "rank-1")])
def test_a_stream_under_another_streams_name_is_refused(
    tmp_path: Path, other: tuple[int, str, str]
) -> None:
    path = path_of(tmp_path, StreamId(*other))
    path.parent.mkdir(exist_ok=True, parents=True)
    write(tmp_path, 3).rename(path)
    with pytest.raises(Corrupt, match="holds the stream a3-9f2c01d7/rank-0"):
        read(path)


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_file_that_is_not_a_plain_one_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path, 3)
    file = path / name
    file.rename(tmp_path / name)
    before = tmp_path.joinpath(name).read_bytes()
    if kind == "link":
        file.symlink_to(tmp_path / name)
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(Corrupt, match=f"{name} is not a regular file"):
        read(path)
    assert tmp_path.joinpath(name).read_bytes() == before


def test_a_stream_without_its_file_is_corrupt(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    path.joinpath("data.mdb").unlink()
    with pytest.raises(Corrupt, match=r"no data\.mdb"):
        read(path)


# --- finding ---------------------------------------------------------------------------------


def test_streams_are_found_in_order_and_nothing_else_is(tmp_path: Path) -> None:
    wanted = [
        StreamId(2, "ffffffff", "supervisor"),
        StreamId(10, "00000000", "rank-0"),
        StreamId(10, "00000000", "rank-1"),
        StreamId(10, "0000000a", "rank-0"),
    ]
    for stream in reversed(wanted):
        path_of(tmp_path, stream).mkdir(parents=True)
    for other in (
        "a2-ffffffff/.rank-0.x",
        "a02-ffffffff/rank-0",
        "b2-f/rank-0",
        "a2/rank-0",
        "a2-FF/rank-0",
        ".a2-f/rank-0",
        "a99999999999-ff/rank-0",
        "a4294967296-f/rank-0",
    ):
        (tmp_path / other).mkdir(parents=True)
    (tmp_path / "a3-ffffffff").symlink_to(tmp_path / "a2-ffffffff")
    (tmp_path / "a2-ffffffff" / "rank-7").symlink_to(tmp_path / "a2-ffffffff" / "supervisor")
    (tmp_path / "a2-ffffffff" / "rank-8").write_text("")
    (tmp_path / "a4-ffffffff").write_text("")
    assert find_streams(tmp_path) == [(stream, path_of(tmp_path, stream)) for stream in wanted]


def test_no_folder_holds_no_streams(tmp_path: Path) -> None:
    assert find_streams(tmp_path / "nothing") == []


def test_a_path_that_names_no_stream_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        Reader(tmp_path)


# --- importing -------------------------------------------------------------------------------


def test_importing_the_journal_brings_nothing_heavy() -> None:
    _run("""
        import sys, walrecover.journal
        heavy = {"torch", "numpy", "click", "rich", "psutil", "subprocess", "logging"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """)


# --- other processes -------------------------------------------------------------------------

_ROOT = Path(__file__).parents[2]


def _run(code: str, **environment: str) -> None:
    import textwrap

    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        cwd=_ROOT,
        env={**os.environ, **environment},
        timeout=60,
    )


def _follower(path: Path, upto: int) -> subprocess.Popen[str]:
    """A process that follows a stream, checks it, and prints the LSN where it stopped."""
    return subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time; from pathlib import Path\n"
            "from tests.streams import expected; from walrecover.journal import Reader\n"
            "path, upto = Path(sys.argv[1]), int(sys.argv[2])\n"
            "cursor, wanted = None, expected(upto)\n"
            "with Reader(path) as reader:\n"
            "    while cursor is None or cursor.lsn < upto:\n"
            "        for events, cursor in reader.batches(cursor):\n"
            "            assert events == wanted[events[0][0] - 1 : events[-1][0]]\n"
            "        time.sleep(0.001)\n"
            "print(cursor.lsn)\n",
            *(str(path), str(upto)),
        ],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
