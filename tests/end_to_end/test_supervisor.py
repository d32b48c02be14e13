"""`supervise` as a process of its own, over real commands that know nothing of torch."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.entries import AttemptEntry, Holder, Plan, attempts
from walrecover.journal import Reader, find_streams
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence

DRIVER = """
    import json, sys
    from pathlib import Path
    from walrecover.errors import WalrecoverError
    from walrecover.policy import Policy
    from walrecover.rundir import RunDir
    from walrecover.supervisor import stopping, supervise

    root, policy, options, *command = sys.argv[1:]
    options = json.loads(options)
    stopping._SAME_SECONDS = options.pop("same", stopping._SAME_SECONDS)
    try:
        sys.exit(supervise(command, RunDir(Path(root), "run"), Policy(**json.loads(policy)),
                           **options))
    except WalrecoverError as error:
        print(f"walrecover: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
"""
ONCE = {"max_restarts": 0}
QUICK = {"initial": 0.05, "jitter": 0.0}
PERSON_SECONDS = 0.3  # from one Ctrl-C to the next: more than between two that are one


class Supervised:
    """A supervisor at work. Its command's output comes through untouched, on the same pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def says(self, words: str) -> str:
        """The line of its own with these words, once that has come."""
        assert self.process.stderr
        for line in self.process.stderr:
            if words in line:
                return line
        raise AssertionError(f"it ended and never said {words!r}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 20.0) -> tuple[int, str]:
        """Its exit code, and what it said."""
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said


Start = Callable[..., Supervised]


def heed_interrupts() -> None:
    """A test run in the background of a shell has SIGINT ignored, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def run(root: Path) -> RunDir:
    return RunDir(root, "run")


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(
        *command: object,
        policy: dict[str, float] = ONCE,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Supervised:
        arguments = [str(root), json.dumps(policy), json.dumps(options or {}), *map(str, command)]
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(DRIVER), *arguments],
            text=True,
            cwd=tmp_path,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "preexec_fn": heed_interrupts,
                **more,
            },
        )
        started.append(process)
        return Supervised(process)

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr, process.stdin):
            if pipe:
                pipe.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], list[str]]:
    """A Python command of these lines."""

    def script(code: str) -> list[str]:
        path = tmp_path / "command.py"
        path.write_text(textwrap.dedent(code))
        return [sys.executable, str(path)]

    return script


def notes(run: RunDir) -> list[list[Any]]:
    """The events of the supervisors' streams, by attempt."""
    found = []
    for stream, path in find_streams(run.journal):
        if stream.writer == "supervisor":
            with Reader(path, stream) as reader:
                found.append([event for _, event in reader.read()])
    return found


def ends(pid: int, seconds: float = 10.0) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


SLEEP = ["sh", "-c", "echo up; exec sleep 60"]


# --- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 75, 255])
def test_the_commands_exit_code_is_ours(start: Start, code: int) -> None:
    assert start("sh", "-c", f"exit {code}").end()[0] == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_a_signal_gives_128_and_its_number(start: Start, number: int) -> None:
    code, said = start("sh", "-c", f"kill -{int(number)} $$").end()
    assert code == 128 + number
    assert f"was ended by {number.name}" in said


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("walrecover-no-such-command", 127, "walrecover-no-such-command: command not found"),
        ("./missing", 127, "./missing: no such file"),
        ("./plain", 126, "./plain: not executable"),
        ("plain", 126, "plain: not executable"),
        ("./folder", 126, "./folder: is a directory"),
        ("folder", 127, "folder: command not found"),
        ("", 127, "'': command not found"),
    ],
)
def test_a_command_that_cannot_be_run_ends_as_in_a_shell_and_writes_nothing(
    start: Start, root: Path, tmp_path: Path, command: str, code: int, says: str
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "folder").mkdir()
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended, said = start(command, env=environ).end()
    assert ended == code
    assert said == f"walrecover: {says}\n"
    assert not root.exists()


@pytest.mark.parametrize("text", ["#!/no/such/interpreter\n", "no magic number\n", ""])
def test_what_the_kernel_refuses_is_not_tried_again(
    start: Start, run: RunDir, tmp_path: Path, text: str
) -> None:
    (tmp_path / "command").write_text(text)
    (tmp_path / "command").chmod(0o755)
    code, said = start("./command", policy=QUICK).end()
    assert code == 126
    assert "the command cannot be run" in said
    assert [type(event) for event in notes(run)[0]] == [
        ev.AttemptBegun,
        ev.RecoveryPlanned,
        ev.WorkerExited,
        ev.RestartDecided,
    ]


# --- restarts -----------------------------------------------------------------------------------

# Fails until its third run; each run adds the attempt that it was told of to a file.
THIRD_TIME = """
    import os, sys
    with open("runs", "a") as file:
        print(os.environ["WALRECOVER_ATTEMPT"], file=file)
    sys.exit(0 if len(open("runs").readlines()) == 3 else 9)
"""


def test_it_restarts_with_backoff_until_the_command_is_done(
    start: Start, script: Callable[[str], list[str]], run: RunDir, tmp_path: Path
) -> None:
    code, said = start(*script(THIRD_TIME), policy=QUICK, options={"resume": "never"}).end()
    assert code == 0
    entries = attempts(Sequence(run.sequence).read())
    told = (tmp_path / "runs").read_text().split()
    assert told == [f"{entry.number}-{entry.nonce}" for entry in entries]
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert [entry.plan.fresh for entry in entries] == [True, False, False]
    assert len({entry.holder for entry in entries}) == 1
    assert said.count("walrecover: restarting: attempt") == 2
    decisions = [events[-1] for events in notes(run)]
    assert [decision.action for decision in decisions] == ["restart", "restart", "stop"]
    assert [decision.delay for decision in decisions] == [0.05, 0.1, 0.0]
    assert all(decision.reason in said for decision in decisions)


def test_it_gives_up_after_max_restarts(start: Start, run: RunDir) -> None:
    code, said = start("sh", "-c", "exit 9", policy={**QUICK, "max_restarts": 2}).end()
    assert code == 9
    assert len(notes(run)) == 3
    assert "--max-restarts is 2" in said


# A worker without torch: says in its own stream that it restored and completed three steps, the
# same ones in every attempt.
WORKER = """
    import os, signal
    from pathlib import Path
    from walrecover.events import AttemptBegun, Resumed, StepCompleted
    from walrecover.journal import Journal
    from walrecover.rundir import RunDir

    run = RunDir(Path(os.environ["WALRECOVER_DIR"]), os.environ["WALRECOVER_RUN"])
    number, nonce = os.environ["WALRECOVER_ATTEMPT"].split("-")
    first = AttemptBegun(run=run.name, attempt=int(number), nonce=nonce, writer="rank-0", rank=0)
    path = run.stream(int(number), nonce, "rank-0")
    with Journal.create(path, attempt=int(number), first=first) as journal:
        journal.append(Resumed(step=0))
        for step in (1, 2, 3):
            journal.append(StepCompleted(step=step))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_first_restart_after_progress_comes_at_once_and_steps_done_again_are_none(
    start: Start, script: Callable[[str], list[str]], run: RunDir
) -> None:
    code, said = start(*script(WORKER), policy={**QUICK, "max_restarts": 1}).end()
    assert code == 128 + signal.SIGKILL
    assert "attempt 1 was ended by SIGKILL (crash) after 3 new steps: at once" in said
    decisions = [events[-1] for events in notes(run)]
    assert [(d.action, d.delay) for d in decisions] == [
        ("restart", 0.0),
        ("restart", 0.05),
        ("stop", 0.0),
    ]


def test_its_stream_tells_the_story(start: Start, run: RunDir) -> None:
    start("sh", "-c", "kill -9 $$").end()
    begun, planned, started, exited, decided = notes(run)[0]
    (entry,) = attempts(Sequence(run.sequence).read())
    assert (begun.attempt, begun.nonce, begun.writer) == (1, entry.nonce, "supervisor")
    assert begun.pid == entry.holder.pid
    assert planned.plan == entry.plan
    assert started.argv == ("sh",)
    assert (exited.pid, exited.signal, exited.code) == (started.pid, 9, None)
    assert exited.cause == exited.fingerprint.partition(":")[0] == "crash"
    assert exited.evidence.startswith("killed by SIGKILL; nobody here asked for it")
    assert decided.action == "stop"


def test_what_the_command_finds_in_its_environment(
    start: Start, script: Callable[[str], list[str]], run: RunDir
) -> None:
    command = script("import json, os; print(json.dumps(dict(os.environ)))")
    environ = {**os.environ, "KEPT": "yes", "WALRECOVER_RESUME": "never"}
    supervised = start(*command, options={"every": "5steps", "resume": "never"}, env=environ)
    found = json.loads(supervised.line())
    assert supervised.end()[0] == 0
    (entry,) = attempts(Sequence(run.sequence).read())
    holder = entry.holder
    assert holder.pid == supervised.pid
    assert found["KEPT"] == "yes"
    assert found["WALRECOVER_DIR"] == str(run.root)
    assert found["WALRECOVER_RUN"] == "run"
    assert found["WALRECOVER_EVERY"] == "5steps"
    assert found["WALRECOVER_RESUME"] == "auto"
    pid, started, identity = found["WALRECOVER_SUPERVISOR"].split(":")
    assert (int(pid), float(started), identity) == (holder.pid, holder.started, holder.supervisor)


# --- stopping -----------------------------------------------------------------------------------

# Says which signals it gets, and ends with 5 on those that ask for it.
LISTENER = """
    import signal, sys
    names = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2")
    awaited = {getattr(signal, "SIG" + name) for name in names}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # or one could come just before the wait
    print("up", flush=True)
    while True:
        number = signal.sigwait(awaited)
        print(signal.Signals(number).name, flush=True)
        if number not in (signal.SIGUSR1, signal.SIGUSR2):
            sys.exit(5)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_stop_signal_is_passed_on_and_ends_without_a_restart(
    start: Start, script: Callable[[str], list[str]], run: RunDir, number: signal.Signals
) -> None:
    supervised = start(*script(LISTENER), policy=QUICK)
    assert supervised.line() == "up"
    supervised.send(number)
    assert supervised.line() == number.name
    code, said = supervised.end()
    assert code == 5
    assert "asked to stop" in said
    cause = "preempted" if number == signal.SIGTERM else "stopped"
    assert notes(run)[0][-2].cause == cause
    assert len(notes(run)) == 1


def test_other_signals_are_passed_on_and_change_nothing(
    start: Start, script: Callable[[str], list[str]]
) -> None:
    supervised = start(*script(LISTENER))
    assert supervised.line() == "up"
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
        supervised.send(number)
        assert supervised.line() == number.name
    supervised.send(signal.SIGTERM)
    assert supervised.end()[0] == 5


def test_a_command_that_dies_of_the_signal_gives_128_and_its_number(start: Start) -> None:
    supervised = start(*SLEEP, policy=QUICK)
    assert supervised.line() == "up"
    supervised.send(signal.SIGTERM)
    assert supervised.end()[0] == 128 + signal.SIGTERM


STUBBORN = ["sh", "-c", "trap '' INT TERM; echo up; while :; do sleep 0.2; done"]


def test_a_second_interrupt_kills_at_once(start: Start) -> None:
    supervised = start(*STUBBORN, policy=QUICK)
    assert supervised.line() == "up"
    supervised.send(signal.SIGINT)
    supervised.says("a second Ctrl-C kills it")
    time.sleep(PERSON_SECONDS)
    assert supervised.process.poll() is None
    supervised.send(signal.SIGINT)
    assert supervised.end(5)[0] == 130


def test_one_interrupt_that_arrives_twice_counts_once(start: Start) -> None:
    supervised = start(*STUBBORN, options={"grace": 1.0, "same": 60.0})
    assert supervised.line() == "up"
    supervised.send(signal.SIGINT)
    supervised.says("asked to stop")  # before that, the kernel would make one of both
    supervised.send(signal.SIGINT)
    assert supervised.end()[0] == 128 + signal.SIGKILL  # after the grace, not by the second


def test_a_second_interrupt_also_ends_the_wait_for_what_was_left_behind(start: Start) -> None:
    ignores = "trap '' INT TERM; echo up; sleep 60; sleep 60"
    supervised = start("sh", "-c", f'echo $$; trap "exit 3" INT; setsid sh -c "{ignores}" & wait')
    command = Path("/proc", supervised.line())
    assert supervised.line() == "up"
    supervised.send(signal.SIGINT)
    wait_until(lambda: not command.exists())
    time.sleep(PERSON_SECONDS)
    assert supervised.process.poll() is None
    supervised.send(signal.SIGINT)
    assert supervised.end(5)[0] == 130


def test_a_command_that_ignores_term_is_killed_after_the_grace(start: Start, run: RunDir) -> None:
    supervised = start(*STUBBORN, options={"grace": 0.3})
    assert supervised.line() == "up"
    supervised.send(signal.SIGTERM)
    assert supervised.end()[0] == 128 + signal.SIGKILL
    assert "it had not ended 0.3 s after it was asked to" in notes(run)[0][-2].evidence


def test_a_command_that_is_stopped_is_killed_after_the_grace(start: Start) -> None:
    supervised = start(
        "sh", "-c", "trap '' TERM; echo up; kill -STOP $$; sleep 60", options={"grace": 0.3}
    )
    assert supervised.line() == "up"
    supervised.send(signal.SIGTERM)
    assert supervised.end()[0] == 128 + signal.SIGKILL


def test_a_stop_during_the_backoff_ends_at_once(start: Start) -> None:
    supervised = start("sh", "-c", "echo up; exit 9", policy={"initial": 60.0})
    assert supervised.line() == "up"
    supervised.says("restarting")
    supervised.send(signal.SIGTERM)
    assert supervised.end(5)[0] == 128 + signal.SIGTERM


def test_a_stop_during_recovery_ends_it_with_nothing_entered(start: Start, run: RunDir) -> None:
    supervised = start(*SLEEP, env={**os.environ, "WALRECOVER_FAILPOINT": "recovery.folded:stop"})
    os.waitid(os.P_PID, supervised.pid, os.WSTOPPED | os.WNOWAIT)
    supervised.send(signal.SIGTERM)
    supervised.send(signal.SIGCONT)
    assert supervised.end()[0] == 128 + signal.SIGTERM
    assert Sequence(run.sequence).read() == []


def test_what_was_ignored_stays_ignored(start: Start) -> None:
    def nohup() -> None:
        heed_interrupts()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    supervised = start(
        "sh", "-c", "echo up; read line; echo done", stdin=subprocess.PIPE, preexec_fn=nohup
    )
    assert supervised.line() == "up"
    supervised.send(signal.SIGHUP)
    time.sleep(0.1)  # for what must not happen
    assert supervised.process.stdin
    supervised.process.stdin.write("\n")
    supervised.process.stdin.flush()
    assert supervised.line() == "done"
    assert supervised.end()[0] == 0


def test_the_command_starts_with_the_signals_that_we_found(start: Start) -> None:
    command = ["grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    bare = subprocess.run(command, capture_output=True, text=True, preexec_fn=heed_interrupts)
    supervised = start(*command)
    assert supervised.process.communicate(timeout=20)[0] == bare.stdout


# --- no orphans ---------------------------------------------------------------------------------


def test_nothing_that_the_command_started_outlives_it(start: Start) -> None:
    # One in a session of its own, and one that lost its parent.
    supervised = start(
        "sh", "-c", "setsid sleep 60 & echo $!; sh -c 'setsid sleep 60 & echo $!'; exit 3"
    )
    pids = [int(supervised.line()) for _ in range(2)]
    assert supervised.end()[0] == 3
    assert all(ends(pid, 0) for pid in pids)


def test_the_next_attempt_starts_only_when_the_last_one_is_gone(
    start: Start, script: Callable[[str], list[str]]
) -> None:
    command = script(
        """
        import os, subprocess, sys
        alive = os.path.exists("pid") and os.path.exists("/proc/" + open("pid").read())
        print(alive, flush=True)
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        open("pid", "w").write(str(child.pid))
        os.kill(os.getpid(), 9)
        """
    )
    supervised = start(*command, policy={**QUICK, "max_restarts": 2})
    assert [supervised.line() for _ in range(3)] == ["False"] * 3
    assert supervised.end()[0] == 137


ATTACHED = """
    import os, sys, time
    from walrecover.processes import watch_supervisor
    pid, started, _ = os.environ["WALRECOVER_SUPERVISOR"].split(":")
    assert watch_supervisor(int(pid), float(started))
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_supervisor_that_is_killed_leaves_nothing(
    start: Start, script: Callable[[str], list[str]]
) -> None:
    worker = script(ATTACHED)
    supervised = start("sh", "-c", 'setsid "$@" & echo $$; exec sleep 60', "sh", *worker)
    pids = [int(supervised.line()) for _ in range(2)]
    supervised.process.kill()
    assert all(ends(pid) for pid in pids)


def test_orphans_are_reaped_while_the_command_runs(start: Start) -> None:
    supervised = start("sh", "-c", "sh -c 'sleep 0.1 & echo $!'; echo up; exec sleep 60")
    orphan = int(supervised.line())
    assert supervised.line() == "up"
    wait_until(lambda: not os.path.exists(f"/proc/{orphan}"))
    supervised.send(signal.SIGTERM)
    assert supervised.end()[0] == 143


# --- output and input ---------------------------------------------------------------------------


def test_output_is_the_very_same_descriptor(start: Start) -> None:
    supervised = start("sh", "-c", "readlink /proc/self/fd/1 /proc/self/fd/2; echo oops >&2")
    assert supervised.process.stdout and supervised.process.stderr
    mine = [
        os.readlink(f"/proc/self/fd/{pipe.fileno()}")
        for pipe in (supervised.process.stdout, supervised.process.stderr)
    ]
    assert [supervised.line(), supervised.line()] == mine
    assert "oops\n" in supervised.end()[1]


def test_output_arrives_while_the_command_runs(start: Start) -> None:
    supervised = start("sh", "-c", "printf 'half a line'; exec sleep 60")
    assert supervised.process.stdout
    assert os.read(supervised.process.stdout.fileno(), 100) == b"half a line"
    supervised.send(signal.SIGTERM)
    supervised.end()


def test_input_that_is_no_terminal_is_inherited(start: Start) -> None:
    supervised = start("cat", stdin=subprocess.PIPE)
    output, _ = supervised.process.communicate("to the command\n", timeout=20)
    assert output == "to the command\n"


def test_from_a_terminal_the_command_reads_nothing_and_is_not_in_the_foreground(
    start: Start,
) -> None:
    controller, terminal = pty.openpty()
    try:
        supervised = start(
            "sh",
            "-c",
            "readlink /proc/self/fd/0; ps -o pgid= -p $$",
            stdin=terminal,
            start_new_session=True,
        )
        assert supervised.line() == "/dev/null"
        assert int(supervised.line()) != supervised.pid
        assert supervised.end()[0] == 0
    finally:
        os.close(controller)
        os.close(terminal)


def test_descriptors_are_passed_on_and_none_of_ours(start: Start) -> None:
    reader, writer = os.pipe()
    try:
        supervised = start(
            "sh", "-c", f"echo through > /proc/$$/fd/{writer}; ls /proc/$$/fd", pass_fds=[writer]
        )
        output, _ = supervised.process.communicate(timeout=20)
        assert os.read(reader, 100) == b"through\n"
        assert {int(fd) for fd in output.split()} <= {0, 1, 2, writer, 10}  # 10: dash's own
    finally:
        os.close(reader)
        os.close(writer)


# --- fenced -------------------------------------------------------------------------------------


def enter_attempt(run: RunDir, supervisor: str = "", host: str = "another") -> None:
    """Enter the next attempt as somebody else would who believes that the supervisor is dead."""

    def decide(entries: list[Any]) -> AttemptEntry:
        number = attempts(entries)[-1].number + 1
        holder = Holder(host=host, boot="b", pid=7, started=1.0, supervisor=supervisor)
        return AttemptEntry("id", 0.0, number, "beef", Plan(), holder)

    Sequence(run.sequence).settle(decide)


def test_a_superseded_supervisor_ends_its_command_and_itself(start: Start, run: RunDir) -> None:
    supervised = start("sh", "-c", "echo $$; exec sleep 60", policy=QUICK)
    pid = int(supervised.line())
    enter_attempt(run)
    code, said = supervised.end(10)
    assert code == 1
    assert "attempt 2 by pid 7 on another took the run over" in said
    assert ends(pid, 0)
    assert notes(run)[0][-2].cause == "fenced"


def test_a_superseded_supervisor_does_not_restart(start: Start, run: RunDir) -> None:
    supervised = start("sh", "-c", "echo up; exit 9", policy={"initial": 2.5, "jitter": 0.0})
    assert supervised.line() == "up"
    assert supervised.process.stderr
    while "restarting" not in supervised.process.stderr.readline():
        pass
    enter_attempt(run)
    code, said = supervised.end(10)
    assert code == 1
    assert "took the run over" in said
    assert len(attempts(Sequence(run.sequence).read())) == 2


def test_a_superseded_supervisor_ends_with_1_even_when_its_command_is_done(
    start: Start, run: RunDir
) -> None:
    supervised = start("sh", "-c", "echo up; read line", stdin=subprocess.PIPE)
    assert supervised.line() == "up"
    enter_attempt(run)  # and what waits for a line meets the end of them
    code, said = supervised.end(10)
    assert code == 1
    assert "took the run over" in said
    assert isinstance(notes(run)[0][-1], ev.RestartDecided)
    assert "took the run over" in notes(run)[0][-1].reason


def test_attempts_by_our_own_workers_do_not_fence_us(
    start: Start, script: Callable[[str], list[str]], run: RunDir
) -> None:
    command = script(
        "import os, time; print(os.environ['WALRECOVER_SUPERVISOR'], flush=True); "
        "time.sleep(2.5); raise SystemExit(4)"
    )
    supervised = start(*command)
    enter_attempt(run, supervisor=supervised.line().rpartition(":")[2])
    assert supervised.end()[0] == 4


def test_a_second_supervisor_is_refused_while_the_first_lives(start: Start, run: RunDir) -> None:
    first = start(*SLEEP)
    assert first.line() == "up"
    code, said = start(*SLEEP).end()
    assert code == 2
    assert f"pid {first.pid}" in said
    first.send(signal.SIGTERM)
    assert first.end()[0] == 143
    assert len(attempts(Sequence(run.sequence).read())) == 1


def test_of_two_started_at_once_one_goes_on(start: Start, run: RunDir) -> None:
    for count in range(1, 4):
        waits = ("sh", "-c", "read line; exit 0")
        both = [start(*waits, stdin=subprocess.PIPE) for _ in range(2)]
        wait_until(lambda both=both: any(one.process.poll() is not None for one in both))  # type: ignore[misc]
        assert sorted(supervised.end()[0] for supervised in both) == [0, 2]
        assert len(attempts(Sequence(run.sequence).read())) == count


# --- a disk that refuses ------------------------------------------------------------------------


def test_a_journal_that_cannot_be_written_does_not_end_the_command(start: Start) -> None:
    environ = {**os.environ, "WALRECOVER_FAILPOINT": "journal.commit.before:enospc"}
    code, said = start("sh", "-c", "sleep 0.3; exit 7", env=environ).end()
    assert code == 7
    assert said.count("journal cannot be written, the command goes on") == 1


# --- the cost -----------------------------------------------------------------------------------


def test_it_stays_small_and_imports_no_torch(start: Start) -> None:
    supervised = start("sh", "-c", "exit 9", policy={"initial": 60.0})
    supervised.says("restarting")  # by now it has swept and looked at the streams, too
    status = Path(f"/proc/{supervised.pid}/status").read_text()
    (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    assert int(peak) < 40 * 1024
    assert "torch" not in Path(f"/proc/{supervised.pid}/maps").read_text()
    supervised.send(signal.SIGTERM)
    supervised.end()
