"""Processes named, seen, tied together and ended; always real ones, started here."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.waiting import wait_until
from walrecover.processes import (
    Seen,
    children,
    descendants,
    die_with_parent,
    identity,
    is_alive,
    started_at,
    watch_supervisor,
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code in a process of its own; ends what still runs by its own handle."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def ends(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process, ours or not, ends within so many seconds."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


SLEEPER = "print('up', flush=True); import time; time.sleep(60)"


# --- naming -------------------------------------------------------------------------------------


def test_we_are_alive() -> None:
    me = identity()
    assert me.pid == os.getpid()
    assert me.started == started_at(os.getpid())
    assert is_alive(me) is True
    assert identity() == me


def test_a_pid_that_was_given_out_again_does_not_count() -> None:
    assert is_alive(msgspec.structs.replace(identity(), started=1.0)) is False


@pytest.mark.parametrize("change", [{"host": "another"}, {"boot": "another/1"}])
def test_what_cannot_be_seen_from_here_is_neither_alive_nor_dead(change: dict[str, str]) -> None:
    assert is_alive(msgspec.structs.replace(identity(), **change)) is None


@pytest.mark.parametrize("pid", [2**22 + 1, 2**40, 0, -1])
def test_a_pid_that_is_not_there_is_dead(pid: int) -> None:
    assert is_alive(msgspec.structs.replace(identity(), pid=pid)) is False


def test_a_process_that_proc_hides_is_neither_alive_nor_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr("walrecover.processes.started_at", lambda pid: None)
    monkeypatch.setattr(os, "kill", refuse)
    me = msgspec.structs.replace(identity(), started=1.0)
    assert is_alive(me) is None


def test_a_zombie_is_dead(start: Start) -> None:
    process = start("pass")
    started = started_at(process.pid)
    assert started is not None
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert started_at(process.pid) is None
    holder = msgspec.structs.replace(identity(), pid=process.pid, started=started)
    assert is_alive(holder) is False


def test_a_name_with_spaces_and_parentheses_is_read(start: Start) -> None:
    process = start(f"open('/proc/self/comm', 'w').write('a) Z (b c'); {SLEEPER}")
    assert line(process) == "up"
    assert started_at(process.pid) is not None


def test_a_process_whose_first_thread_ended_is_alive(start: Start) -> None:
    process = start(
        """
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("up", flush=True)
        ctypes.CDLL(None).pthread_exit(None)
        """
    )
    assert line(process) == "up"
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: stat.read_text().split()[2] == "Z")
    assert started_at(process.pid) is not None


def test_the_process_table_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, walrecover.processes; print('psutil' in sys.modules, 'ctypes' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == ["False", "False"]


# --- ties ---------------------------------------------------------------------------------------


def test_a_child_dies_with_its_parent(start: Start) -> None:
    parent = start(
        """
        import os, subprocess, sys, time
        from walrecover.processes import become_subreaper, die_with_parent
        become_subreaper()
        me = os.getpid()
        child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: die_with_parent(me))
        print(child.pid, flush=True)
        time.sleep(60)
        """
    )
    child = int(line(parent))
    parent.kill()
    assert ends(child)


def test_a_child_whose_parent_has_already_died_ends_at_once(start: Start) -> None:
    process = start("", preexec_fn=lambda: die_with_parent(1 if os.getppid() != 1 else 2))
    assert process.wait(10) == -signal.SIGKILL


WORKER = """
    import sys, time
    from walrecover.processes import watch_supervisor
    pid, started, farewell = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    watched = watch_supervisor(pid, started, lambda: open(farewell, "w").close())
    print(watched, flush=True)
    time.sleep(60)
"""


def test_a_worker_ends_when_its_supervisor_is_killed(start: Start, tmp_path: Path) -> None:
    supervisor = start(SLEEPER)
    line(supervisor)
    # In a session of its own and without inherited descriptors, as torchrun starts it.
    worker = start(
        WORKER,
        supervisor.pid,
        repr(started_at(supervisor.pid)),
        tmp_path / "farewell",
        start_new_session=True,
    )
    assert line(worker) == "True"
    assert worker.poll() is None
    supervisor.kill()
    assert worker.wait(10) == -signal.SIGKILL
    assert (tmp_path / "farewell").exists()


def test_a_farewell_that_hangs_does_not_keep_the_worker(start: Start) -> None:
    supervisor = start(SLEEPER)
    line(supervisor)
    worker = start(
        """
        import sys, time
        from walrecover import processes
        processes._FAREWELL_SECONDS = 0.2
        print(processes.watch_supervisor(
            int(sys.argv[1]), float(sys.argv[2]), lambda: time.sleep(60)), flush=True)
        time.sleep(60)
        """,
        supervisor.pid,
        repr(started_at(supervisor.pid)),
    )
    assert line(worker) == "True"
    supervisor.kill()
    assert worker.wait(10) == -signal.SIGKILL


def test_a_supervisor_that_is_gone_is_not_watched() -> None:
    me = identity()
    assert watch_supervisor(2**22 + 1, 1.0) is False
    assert watch_supervisor(me.pid, me.started - 1.0) is False


# --- the tree -----------------------------------------------------------------------------------

# Starts a chain of processes, each in a session of its own, and prints their pids.
CHAIN = """
    import os, subprocess, sys, time
    depth = int(sys.argv[2])
    if depth:
        subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1], str(depth - 1)],
                         start_new_session=True)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_descendants_in_other_sessions_are_found(start: Start) -> None:
    code = textwrap.dedent(CHAIN)
    top = start(code, code, 2)
    pids = {int(line(top)) for _ in range(3)}
    below = descendants(os.getpid())
    assert pids <= {seen.pid for seen in below}
    assert {seen.pid for seen in descendants(top.pid)} == pids - {top.pid}
    for seen in below:
        assert seen == Seen(seen.pid, started_at(seen.pid) or 0.0)
        if seen.pid in pids - {top.pid}:
            os.kill(seen.pid, signal.SIGKILL)


def test_nothing_descends_from_a_process_that_is_not_there() -> None:
    assert descendants(2**22 + 1) == []


# Runs kill_tree over what `sys.argv[1]` starts, and prints what it took.
KILLER = """
    import os, subprocess, sys, time
    from walrecover.processes import become_subreaper, kill_tree
    become_subreaper()
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    if sys.argv[3:]:  # only once it has ended: a zombie, not reaped
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ended = {}
    began = time.monotonic()
    left = kill_tree(float(sys.argv[2]), lambda pid, status, peak: ended.update({pid: status}))
    print(len(left), round(time.monotonic() - began, 3), *ended.values(), flush=True)
"""


def kill_below(start: Start, code: str, grace: float, *more: str) -> tuple[float, list[int]]:
    killer = start(KILLER, textwrap.dedent(code), grace, *more)
    left, seconds, *statuses = line(killer).split()
    assert left == "0"
    assert killer.wait(10) == 0
    return float(seconds), [int(status) for status in statuses]


def test_what_heeds_term_is_not_killed(start: Start) -> None:
    seconds, statuses = kill_below(start, SLEEPER, grace=20)
    assert statuses == [signal.SIGTERM]
    assert seconds < 10


def test_what_ignores_term_is_killed_after_the_grace(start: Start) -> None:
    ignores = f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEPER}"
    seconds, statuses = kill_below(start, ignores, grace=0.4)
    assert statuses == [signal.SIGKILL]
    assert 0.4 <= seconds < 5


def test_what_is_stopped_is_woken_to_hear_of_it(start: Start) -> None:
    stopped = """
        import os, signal, sys, time
        if os.fork():
            print("up", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    """
    seconds, statuses = kill_below(start, stopped, grace=20)
    assert statuses.count(signal.SIGTERM) == 2
    assert seconds < 10


def test_without_grace_all_are_killed_at_once(start: Start) -> None:
    _, statuses = kill_below(start, SLEEPER, grace=0)
    assert statuses == [signal.SIGKILL]


def test_orphans_and_daemons_are_ended_and_reaped(start: Start) -> None:
    daemonised = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("up", flush=True)
                time.sleep(60)
            os._exit(0)
        time.sleep(60)
    """
    _, statuses = kill_below(start, daemonised, grace=20)
    assert statuses.count(signal.SIGTERM) == 2


def test_what_forks_during_the_sweep_is_ended_too(start: Start) -> None:
    # From TERM on, forks a child every 20 ms; all of them ignore TERM.
    forking = """
        import os, signal, time
        told = False
        def begin(number, frame):
            global told
            told = True
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, begin)
        print("up", flush=True)
        while True:
            time.sleep(0.02)
            if told and os.fork() == 0:
                os.setsid()
                time.sleep(60)
    """
    _, statuses = kill_below(start, forking, grace=0.6)
    assert set(statuses) == {signal.SIGKILL}
    assert len(statuses) > 1


def test_what_is_forked_in_answer_to_term_is_told_as_well(start: Start) -> None:
    respawning = """
        import os, signal, time
        def respawn(number, frame):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(60)
        signal.signal(signal.SIGTERM, respawn)
        print("up", flush=True)
        time.sleep(60)
    """
    seconds, statuses = kill_below(start, respawning, grace=20)
    assert statuses == [0, signal.SIGTERM]
    assert seconds < 10


def test_a_hurry_cuts_the_grace_short(start: Start) -> None:
    killer = start(
        """
        import os, subprocess, sys, time
        from walrecover.processes import become_subreaper, kill_tree

        class Hurry:
            def __init__(self):
                self.reader, self.writer = os.pipe()
            def fileno(self):
                return self.reader
            def __call__(self):
                return os.read(self.reader, 1) == b"!"

        become_subreaper()
        subprocess.Popen(["sh", "-c", "trap '' TERM; echo up; sleep 60; sleep 60"],
                         stdout=subprocess.PIPE).stdout.readline()
        hurry = Hurry()
        os.write(hurry.writer, b"?!")
        began = time.monotonic()
        left = kill_tree(60, lambda pid, status, peak: None, hurry)
        print(len(left), time.monotonic() - began < 10, flush=True)
        """
    )
    assert line(killer) == "0 True"


def test_with_nothing_to_end_it_returns_at_once(start: Start) -> None:
    seconds, statuses = kill_below(start, "print('up', flush=True)", 20, "ended")
    assert statuses == [0]
    assert seconds < 5


def test_children_are_told_while_threads_come_and_go(start: Start) -> None:
    """The kernel lists them by thread; a list whose thread has ended is gone."""
    child = start("import signal; signal.pause()")
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            threads = [threading.Thread(target=int) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(200):
            assert child.pid in children()
    finally:
        done.set()
        churning.join()
