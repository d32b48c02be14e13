"""The daemon as people run it: what it shows, and what it does with what is bad."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from tests.support import readmodels
from tests.support.daemon_kills import follower_of
from tests.support.protocol import Launch, entries_of
from tests.support.readmodels import ended, rows, run_daemon
from tests.support.waiting import wait_until
from walrecover import codec
from walrecover import entries as model
from walrecover import events as ev
from walrecover.journal import Journal, find_streams
from walrecover.journal.stream import key_of
from walrecover.processes import identity, started_at
from walrecover.rundir import RunDir
from walrecover_daemon.waking import MOST_RUNS


def trained(root: Path, name: str = "one", steps: int = 5) -> RunDir:
    """A run with a snapshot, that has ended."""
    run = RunDir(root, name)
    with Launch.begin(run) as launch:
        launch.train(steps)
        launch.keep(launch.save())
    return run


@contextmanager
def serving(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = readmodels.daemon("serve", *words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def states(path: Path) -> dict[str, str]:
    try:
        return {row["name"]: row["state"] for row in rows(path, "SELECT name, state FROM runs")}
    except sqlite3.OperationalError:
        return {}


def problems(path: Path) -> dict[str, tuple[str, str]]:
    sql = "SELECT writer, kind, problem FROM streams WHERE kind != ''"
    return {row["writer"]: (row["kind"], row["problem"]) for row in rows(path, sql)}


# --- what it shows --------------------------------------------------------------------------------


def test_the_newest_snapshot_of_each_run_is_one_select(root: Path, path: Path) -> None:
    for name, steps in (("one", 5), ("other", 7)):
        trained(root, name, steps)
    assert run_daemon("serve", "--once", root)[0] == 0
    spec = (Path(__file__).parents[2] / "specs" / "19-daemon.md").read_text()
    select = spec.partition("```sql\n")[2].partition("```")[0]
    for sql in (select, "SELECT name, step, committed_at, status FROM newest_snapshots"):
        found = {row["name"]: (row["step"], row["status"]) for row in rows(path, sql)}
        assert found == {"one": (5, "committed"), "other": (7, "committed")}


def test_a_directory_that_holds_a_walrecover_directory_will_do(root: Path, path: Path) -> None:
    run = trained(root)
    code, said, _ = run_daemon("serve", "--once", root.parent)
    assert (code, said) == (0, '{"runs":1,"events":14}\n')
    readmodels.agrees(path, run)


def test_walrecover_daemon_is_the_same_command(root: Path, path: Path) -> None:
    trained(root)
    command = [sys.executable, "-m", "walrecover.cli", "daemon"]
    done = subprocess.run(
        [*command, "serve", "--once", str(root)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == '{"runs":1,"events":14}\n'
    done = subprocess.run([*command, "serve", "--nope"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "No such option '--nope'" in done.stderr


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.machinery as m\nfind = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda n, *a: None if n == 'sqlite_utils' else find(n, *a)\n"
    )
    done = subprocess.run(
        [*readmodels.DAEMON, "serve"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "sqlite_utils is not installed: pip install 'walrecover[daemon]'" in done.stderr


def test_events_are_visible_soon_after_they_are_appended(root: Path, path: Path) -> None:
    run = RunDir(root, "live")
    with Launch.begin(run, identity()) as launch, serving(root):
        launch.train(3)
        wait_until(lambda: states(path) == {"live": "running"})
        launch.train(3)
        (row,) = wait_until(lambda: rows(path, "SELECT * FROM runs WHERE last_step=6"))
        assert row["state"] == "running"
        sql = "SELECT step, loss FROM steps JOIN streams ON id=stream WHERE writer='rank-0'"
        losses = [(step, 2.0**-step) for step in range(1, 7)]
        assert [tuple(row.values()) for row in rows(path, sql)] == losses


def test_with_more_runs_than_inotify_is_asked_to_watch_events_are_visible_too(
    root: Path, path: Path
) -> None:
    for number in range(MOST_RUNS):
        RunDir(root, f"empty-{number}").sequence.mkdir(parents=True)
    run = RunDir(root, "live")
    with Launch.begin(run, identity()) as launch, serving(root) as process:
        assert process.stderr is not None
        assert f"{MOST_RUNS + 1} runs are more than inotify" in process.stderr.readline()
        wait_until(lambda: states(path).get("live") == "running")
        launch.train(3)
        wait_until(lambda: rows(path, "SELECT * FROM runs WHERE last_step=3"))
        text = httpx.get(readmodels.address(process)).text
        assert f"500 of {MOST_RUNS + 1} runs: those that are alive, then the newest" in text
        assert text.index(">live</a>") < text.index(">empty-")
    assert len(states(path)) == MOST_RUNS + 1


def test_journals_may_lie_elsewhere(root: Path, path: Path, tmp_path: Path) -> None:
    run = RunDir(root, "one", tmp_path / "local")
    with Launch.begin(run, identity()) as launch:
        launch.train(2)
        with serving(root, "--journal-dir", tmp_path / "local"):
            wait_until(lambda: states(path) == {"one": "running"})
            launch.train(3)
            wait_until(lambda: rows(path, "SELECT * FROM runs WHERE last_step=5"))


def test_what_was_superseded_fenced_and_rejected_is_told(root: Path, path: Path) -> None:
    run = RunDir(root, "one")
    with Launch.begin(run) as first:
        first.train(4)
        kept = first.save()
        first.train(4)
        torn = first.save()
        first.train(2)
        (run.snapshots / torn.snapshot.name / "rank-00000.msgpack").write_bytes(b"rot")
        with Launch.begin(run) as second:
            first.journals[0].append(ev.RunStopped(step=10, at=9e9))  # it slept, and woke
            second.train(2)
    run_daemon("serve", "--once", root)
    (old, new) = rows(path, "SELECT * FROM attempts ORDER BY number")
    assert (old["superseded_from"], old["fenced"]) == (5, 1)
    assert (new["superseded_from"], new["fenced"], new["base_step"]) == (None, 0, 4)
    status = {row["step"]: row for row in rows(path, "SELECT * FROM snapshots")}
    assert (status[4]["status"], status[8]["status"]) == ("committed", "rejected")
    assert "rank-00000.msgpack" in status[8]["reason"]
    (recovery,) = rows(path, "SELECT * FROM recoveries")
    assert (recovery["attempt"], recovery["base_step"]) == (2, kept.snapshot.step)
    assert "rank-00000.msgpack" in recovery["rejected"]


# --- the read model -------------------------------------------------------------------------------


def test_two_daemons_on_one_read_model_the_second_says_so(root: Path, path: Path) -> None:
    trained(root)
    with serving(root) as first:
        wait_until(lambda: states(path) == {"one": "ended"})
        for command in ("serve", "rebuild"):
            code, _, said = run_daemon(command, root)
            assert code == 2
            assert f"another daemon (pid {first.pid}) keeps the read model {path}" in said


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 3000] = os.urandom(3000)
    path.write_bytes(data)


def overwrite(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [damage, overwrite, cut, os.unlink])
def test_a_lost_or_damaged_read_model_is_made_anew_by_itself(
    root: Path, path: Path, harm: object
) -> None:
    run = trained(root)
    run_daemon("serve", "--once", root)
    before = readmodels.dump(path)
    harm(path)  # type: ignore[operator]
    code, _, said = run_daemon("serve", "--once", root)
    assert code == 0
    assert ("made anew from the journals" in said) == (harm is not os.unlink)
    assert readmodels.dump(path) == before
    readmodels.agrees(path, run)


def test_a_read_model_that_is_taken_away_under_the_daemon_is_made_anew(
    root: Path, path: Path
) -> None:
    run = trained(root)
    with serving(root):
        wait_until(lambda: states(path) == {"one": "ended"})
        for suffix in ("", "-wal", "-shm"):
            os.unlink(f"{path}{suffix}")
        wait_until(lambda: states(path) == {"one": "ended"})
        wait_until(lambda: readmodels.count(path) == 14)
    readmodels.agrees(path, run)


def test_another_programs_database_is_left_alone(root: Path, tmp_path: Path) -> None:
    trained(root)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as conn:
        conn.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    for command in ("serve", "rebuild"):
        code, _, said = run_daemon(command, root, "--read-model", other)
        assert (code, other.read_bytes()) == (2, before)
        assert "is another program's database: give another with --read-model" in said


def test_a_read_model_of_a_newer_release_is_left_alone(root: Path, path: Path) -> None:
    trained(root)
    run_daemon("serve", "--once", root)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version=99")
    code, _, said = run_daemon("serve", "--once", root)
    assert code == 2
    assert "was made by a newer release (version 99" in said
    assert run_daemon("rebuild", root)[0] == 0


def test_a_full_disk_under_the_read_model_is_waited_out(root: Path, path: Path) -> None:
    run = RunDir(root, "one")
    with Launch.begin(run) as launch, serving(root) as process:
        wait_until(lambda: states(path) == {"one": "ended"})
        number = follower_of(process.pid)
        assert number is not None
        follower = psutil.Process(number)
        assert process.stderr is not None
        soft, hard = follower.rlimit(psutil.RLIMIT_FSIZE)
        follower.rlimit(psutil.RLIMIT_FSIZE, (1, hard))  # any write fails now
        launch.train(500)
        assert "cannot be written" in process.stderr.readline()
        follower.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
        wait_until(lambda: rows(path, "SELECT * FROM runs WHERE last_step=500 AND settled"))
    readmodels.agrees(path, run)


def test_a_directory_that_is_none_is_bad_input(tmp_path: Path) -> None:
    code, _, said = run_daemon("serve", "--once", tmp_path / "nowhere")
    assert code == 2
    assert "is not there: give a .walrecover directory" in said


# --- journals -------------------------------------------------------------------------------------


PAGE = 4096
LAST = 7
"""LSN of the last event of a stream of `trained`."""


def rot(run: RunDir, writer: str = "rank-0") -> Path:
    """Flip a bit in the last event of a stream."""
    path = next(path for stream, path in find_streams(run.journal) if stream.writer == writer)
    data = bytearray((path / "data.mdb").read_bytes())
    head = codec.MAGIC + struct.pack("<HHQ", codec.FORMAT, 0, LAST)
    assert data.count(head) >= 1
    place = -1
    while (place := data.find(head, place + 1)) >= 0:  # pages that are free now hold it, too
        data[place + codec.HEADER_BYTES] ^= 1
    (path / "data.mdb").write_bytes(data)
    return path


def test_a_journal_that_rots_is_said_in_its_row_and_the_rest_goes_on(
    root: Path, path: Path
) -> None:
    bad, good = trained(root, "bad"), trained(root, "good")
    rot(bad)
    code, _, said = run_daemon("serve", "--once", root)
    assert code == 0, said
    ((kind, problem),) = problems(path).values()
    assert kind == "Corrupt"
    assert "checksum" in problem
    readmodels.agrees(path, good)
    (row,) = rows(path, "SELECT lsn FROM streams WHERE kind='Corrupt'")
    assert row["lsn"] == LAST - 1
    before = readmodels.dump(path)
    assert run_daemon("rebuild", root)[0] == 0
    assert readmodels.dump(path) == before


def test_a_journal_that_kills_its_reader_is_read_apart(root: Path, path: Path) -> None:
    """The file loses its pages under a reader that has it open: that is a SIGBUS."""
    run, other = RunDir(root, "bad"), trained(root, "good")
    with Launch.begin(run) as launch:
        launch.train(300)
    (_, stream), _ = find_streams(run.journal)
    with serving(root) as process:
        wait_until(lambda: states(path) == {"bad": "ended", "good": "ended"})
        os.truncate(stream / "data.mdb", 8192)
        assert process.stderr is not None
        assert f"reading {stream} ended the follower" in process.stderr.readline()
        wait_until(lambda: problems(path))
    ((kind, _),) = problems(path).values()
    assert kind == "Torn"
    readmodels.agrees(path, other)


def test_a_page_that_kills_its_reader_is_read_up_to_it(root: Path, path: Path) -> None:
    """A page's pointer leads behind the end of the file: no meta page shows it, and following it is
    a SIGBUS."""
    run, other = trained(root, "bad"), trained(root, "good")
    (_, stream), _ = find_streams(run.journal)
    data = bytearray((stream / "data.mdb").read_bytes())
    node = struct.pack("<H", 8) + key_of(LAST - 2) + codec.MAGIC  # length of the key, key, value
    place = -1
    while (place := data.find(node, place + 1)) >= 0:
        page = place // PAGE * PAGE
        pointer = struct.pack("<H", place - 6 - page)
        struct.pack_into("<H", data, data.index(pointer, page + 16), 0xFFF0)
    (stream / "data.mdb").write_bytes(data)
    code, _, said = run_daemon("serve", "--once", root)
    assert code == 0, said
    assert said.count(f"reading {stream} ended the follower") == 1
    ((kind, problem),) = problems(path).values()
    assert kind == "Corrupt"
    assert "ends the process that does it by SIG" in problem
    (row,) = rows(path, "SELECT lsn FROM streams WHERE kind != ''")
    assert row["lsn"] == LAST - 3
    readmodels.agrees(path, other)
    before = readmodels.dump(path)
    run_daemon("serve", "--once", root)
    assert readmodels.dump(path) == before


def test_a_stream_of_a_newer_format_is_said_in_its_row(root: Path, path: Path) -> None:
    run = trained(root)
    entry = model.newest_attempt(entries_of(run))
    assert entry is not None
    key = (entry.number, entry.nonce, "rank-7")
    first = ev.AttemptBegun(run="one", attempt=entry.number, nonce=entry.nonce, writer="rank-7")
    with Journal.create(run.stream(*key), attempt=entry.number, first=first) as journal:
        journal.append(ev.Resumed(step=0))
    file = run.stream(*key) / "data.mdb"
    data = bytearray(file.read_bytes())
    place = data.rindex(codec.MAGIC)
    sealed = bytes(data[place + 36 : place + 40])
    size = next(n for n in range(1, 200) if crc_of(data, place, n) == sealed)
    struct.pack_into("<H", data, place + 4, codec.FORMAT + 1)
    data[place + 36 : place + 40] = crc_of(data, place, size)
    file.write_bytes(data)
    assert run_daemon("serve", "--once", root)[0] == 0
    assert problems(path)["rank-7"][0] == "UnsupportedVersion"
    assert states(path) == {"one": "ended"}


def crc_of(data: bytearray, place: int, size: int) -> bytes:
    payload = bytes(data[place + 40 : place + 40 + size])
    return struct.pack("<I", zlib.crc32(payload, zlib.crc32(bytes(data[place : place + 36]))))


def test_runs_and_streams_that_vanish_are_said_to_be_gone(root: Path, path: Path) -> None:
    gone, half = trained(root, "gone"), trained(root, "half")
    good = trained(root, "good")
    with serving(root):
        wait_until(lambda: len(states(path)) == 3 and "" not in states(path).values())
        shutil.rmtree(gone.path)
        (_, stream), _ = find_streams(half.journal)
        shutil.rmtree(stream)
        wait_until(lambda: states(path)["gone"] == "gone")
        wait_until(lambda: problems(path))
    assert [kind for kind, _ in problems(path).values()] == ["Gone"]
    assert states(path) == {"gone": "gone", "half": "ended", "good": "ended"}
    readmodels.agrees(path, good)
    trained(root, "gone", 3)  # another run, of the same name
    run_daemon("serve", "--once", root)
    readmodels.agrees(path, gone)


def test_a_run_without_permission_is_said_and_the_rest_goes_on() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, path = folder / ".walrecover", folder / "read-model.db"
        good, closed = trained(root, "good"), trained(root, "closed")
        for each in (folder, *folder.rglob("*")):
            os.chmod(each, 0o777)
        closed.path.chmod(0)
        try:
            assert as_somebody_else(lambda: readmodels.follow_once(root, path)) == 0
        finally:
            closed.path.chmod(0o700)
        assert states(path) == {"closed": "damaged", "good": "ended"}
        (row,) = rows(path, "SELECT problem FROM runs WHERE name='closed'")
        assert "Permission denied" in row["problem"]
        readmodels.agrees(path, good)
        follow = run_daemon("serve", "--once", root, "--read-model", path)
        assert follow[0] == 0, follow
        readmodels.agrees(path, closed)


def as_somebody_else(work: Callable[[], object]) -> int:
    """In a child without root's rights; its exit status."""
    importlib.import_module("sqlite_utils")  # Python itself may be closed to that one
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_another_run_under_the_same_name_takes_its_place(root: Path, path: Path) -> None:
    run = trained(root)
    run_daemon("serve", "--once", root)
    shutil.rmtree(run.journal)  # seen in the middle of being deleted
    run_daemon("serve", "--once", root)
    shutil.rmtree(run.path)
    trained(root, steps=3)
    run_daemon("serve", "--once", root)
    readmodels.agrees(path, run)


def test_a_sequence_that_cannot_be_read_is_said_and_the_rest_goes_on(
    root: Path, path: Path
) -> None:
    bad, good = trained(root, "bad"), trained(root, "good")
    (bad.sequence / "00000001.json").write_bytes(b"rot")
    assert run_daemon("serve", "--once", root)[0] == 0
    assert states(path) == {"bad": "damaged", "good": "ended"}
    (row,) = rows(path, "SELECT problem FROM runs WHERE name='bad'")
    assert "sequence entry 1" in row["problem"]
    readmodels.agrees(path, good)


def test_events_that_came_back_as_others_replace_those_that_were_followed(
    root: Path, path: Path
) -> None:
    """A power cut takes unsynced events back: the cursor does not fit any more."""
    run = RunDir(root, "one")
    with Launch.begin(run, world=1) as launch:
        launch.train(3)
    ((_, stream),) = find_streams(run.journal)
    kept = shutil.copytree(stream, root / "kept")
    shutil.rmtree(stream)
    shutil.copytree(kept, stream)
    entry = model.newest_attempt(entries_of(run))
    assert entry is not None
    run_daemon("serve", "--once", root)
    shutil.rmtree(stream)
    first = ev.AttemptBegun(run="one", attempt=1, nonce=entry.nonce, writer="rank-0", host="x")
    with Journal.create(stream, attempt=1, first=first) as journal:
        journal.append(ev.StepCompleted(step=1, scalars={"loss": 9.0}))
    run_daemon("serve", "--once", root)
    readmodels.agrees(path, run)
    assert rows(path, "SELECT step, loss FROM steps") == [{"step": 1, "loss": 9.0}]


def test_a_run_whose_supervisor_dies_is_not_running_any_more(root: Path, path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        who = msgspec.structs.replace(
            identity(), pid=sleeper.pid, started=started_at(sleeper.pid) or 0.0
        )
        with Launch.begin(RunDir(root, "one"), who) as launch:
            launch.train(2)
        with serving(root):
            wait_until(lambda: states(path) == {"one": "running"})
            sleeper.kill()
            sleeper.wait()
            wait_until(lambda: states(path) == {"one": "ended"})
    finally:
        sleeper.kill()
        sleeper.wait()


def test_stopped_by_sigterm_it_keeps_what_it_has_folded(root: Path, path: Path) -> None:
    trained(root)
    with serving(root) as process:
        wait_until(lambda: states(path) == {"one": "ended"})
        process.send_signal(signal.SIGTERM)
        ended(process)
        assert process.returncode == 0
    (row,) = rows(path, "SELECT min(lsn = folded_lsn) AS same FROM streams")
    assert row["same"] == 1
