"""Real commands that live and make no step: found, written down, named, ended, begun again.

All but one are workers without torch: they attach by hand and beat as a session does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support import readmodels
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.journal import Reader, find_streams
from walrecover.rundir import RunDir

# A rank without torch. What it does the first time, it knows by a file that it then makes.
RANK = """
    import os, signal, sys, time
    from pathlib import Path
    from walrecover import stacks
    from walrecover.beats import Beat
    from walrecover.events import AttemptBegun, Resumed, StepCompleted
    from walrecover.journal import Journal
    from walrecover.rundir import RunDir

    def first_time(name="met"):
        if os.path.exists(name):
            return False
        open(name, "w").close()
        return True

    class Rank:
        def __init__(self, rank=0):
            self.step_count = 0
            run = RunDir(Path(os.environ["WALRECOVER_DIR"]), os.environ["WALRECOVER_RUN"])
            number, nonce = os.environ["WALRECOVER_ATTEMPT"].split("-")
            folder = run.meeting(int(number), nonce)
            folder.mkdir(parents=True, exist_ok=True)
            self.beat = Beat(folder, rank)
            stacks.prepare(folder, rank)
            number, name = int(number), f"rank-{rank}"
            first = AttemptBegun(run=run.name, attempt=number, nonce=nonce, writer=name)
            path = run.stream(number, nonce, name)
            self.journal = Journal.create(path, attempt=number, first=first)
            self.journal.append(Resumed(step=0))
            self.beat.say("first", 0)
        def step(self):
            self.step_count += 1
            self.journal.append(StepCompleted(step=self.step_count))
            self.journal.sync()
            self.beat.say("training", self.step_count)
        def end(self):
            self.journal.close()
            self.beat.say("ended")
"""


class Ended(NamedTuple):
    code: int
    said: str
    run: RunDir

    def show(self) -> dict[str, Any]:
        done = walrecover(self.run.root, "show", "--json", self.run.name)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def events(self, kind: type) -> list[Any]:
        """Of the supervisor's streams, in order."""
        found = []
        for stream, path in find_streams(self.run.journal):
            if stream.writer == "supervisor":
                with Reader(path, stream) as reader:
                    found += [event for _, event in reader.read() if isinstance(event, kind)]
        return found


def walrecover(
    root: Path, *arguments: str, path: str = os.defpath, **more: Any
) -> subprocess.CompletedProcess[str]:
    """By default there is no py-spy to be found."""
    return subprocess.run(
        [sys.executable, "-m", "walrecover.cli", *arguments],
        env={**os.environ, "WALRECOVER_DIR": str(root), "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )


def supervise(folder: Path, code: str, *options: str, **more: Any) -> Ended:
    """Run a script of these lines under `walrecover run`, to its end."""
    script = folder / "train.py"
    script.write_text(textwrap.dedent(RANK) + textwrap.dedent(code))
    root = folder / ".walrecover"
    common = [
        "--name",
        "run",
        "--backoff",
        "0",
        "--grace",
        "1s",
        "--standby",
        "off",
        "--no-preflight",
    ]
    done = walrecover(
        root, "run", *common, *options, "--", sys.executable, str(script), cwd=folder, **more
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stderr, RunDir(root, "run"))


def is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


# --- a real training ----------------------------------------------------------------------------

PAIR = """
    import os, signal, subprocess, sys
    import torch
    torch.set_num_threads(1)
    if len(sys.argv) == 1:  # the launcher: both ranks, and the end of both when one fails
        store = "store-" + os.environ["WALRECOVER_ATTEMPT"]
        ranks = [subprocess.Popen([sys.executable, __file__, str(n), store]) for n in range(2)]
        sys.exit(max(abs(rank.wait()) for rank in ranks))
    from tests.end_to_end.scripts import ranks
    rank, store = int(sys.argv[1]), sys.argv[2]
    learn = ranks.learn
    count = 0
    def stopping(*arguments):
        global count
        count += 1
        if count == 4 and rank == 1 and first_time():
            os.kill(os.getpid(), signal.SIGSTOP)
            while True:  # continued for its stacks: a second stop might cut them off
                signal.pause()
        return learn(*arguments)
    ranks.learn = stopping
    ranks.training(os.path.abspath(store), rank)
"""


@pytest.mark.slow
def test_a_stopped_rank_of_two_is_named_and_the_training_goes_on_to_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ended = supervise(folder, PAIR, "--hang-timeout", "step=15s", "--every", "1steps")
    assert ended.code == 0, ended.said
    first, last = ended.show()["attempts"]
    assert (first["cause"], first["decision"], last["cause"]) == ("hang", "restart", "done")
    assert "rank 1 made no step for" in first["evidence"]
    assert "its process is stopped by a signal" in first["evidence"]
    assert "rank 0 waited with it" in first["evidence"]
    (hang,) = ended.events(ev.HangDetected)
    assert (hang.rank, hang.step, hang.phase, hang.limit) == (1, 3, "step", 15.0)
    stopped, waiting = ((ended.run.path / name).read_text() for name in hang.artefacts[1::-1])
    assert "(stopped)" in stopped and "in stopping" in stopped
    assert "in learn" in waiting and "torch/nn/parallel/distributed.py" in waiting


# --- what it stands in --------------------------------------------------------------------------

LOOPS = """
    rank = Rank()
    rank.step()
    if first_time():
        while True: pass  # here it hangs
    rank.step()
    rank.end()
"""


def test_an_endless_loop_is_found_and_the_stacks_name_its_line(folder: Path) -> None:
    ended = supervise(folder, LOOPS, "--hang-timeout", "step=1s")
    assert ended.code == 0, ended.said
    (hang,) = ended.events(ev.HangDetected)
    lines = (folder / "train.py").read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if "here it hangs" in line)
    exited = ended.events(ev.WorkerExited)[0]
    assert exited.artefacts == hang.artefacts
    (artefact,) = (ended.run.path / name for name in hang.artefacts)
    assert f'train.py", line {number} in <module>' in artefact.read_text()
    assert f"train.py line {number} in <module>" in hang.reason
    assert exited.cause == "hang" and hang.reason in exited.evidence
    assert str(artefact.parent) in ended.show()["attempts"][0]["evidence"]
    assert 1.0 < hang.seconds < 3 * hang.limit
    assert f"line {number} in &lt;module&gt;" in stacks_on_the_page(ended.run)


def stacks_on_the_page(run: RunDir) -> str:
    process = readmodels.daemon("serve", run.root)
    try:
        with httpx.Client(base_url=readmodels.address(process), timeout=30) as page:
            wait_until(lambda: page.get("/readyz").status_code == 200)
            return page.get(f"/runs/{run.name}/part/stacks").text
    finally:
        process.terminate()
        process.communicate(timeout=60)


HOLDS_THE_LOCK = """
    import ctypes
    rank = Rank()
    rank.step()
    if first_time():
        # Native code that never comes back, with the interpreter lock: a mutex taken twice.
        signal.signal(signal.SIGTERM, lambda *_: None)
        mutex, libc = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)
    rank.end()
"""


def test_native_code_that_holds_the_interpreter_lock_still_shows_its_stack(folder: Path) -> None:
    ended = supervise(folder, HOLDS_THE_LOCK, "--hang-timeout", "step=1s")
    (hang,) = ended.events(ev.HangDetected)
    assert "train.py line" in hang.reason
    assert ended.events(ev.WorkerExited)[0].signal == signal.SIGKILL  # TERM it could not hear


# posix_spawn waits for its child's exec in the kernel, and the child for somebody to open the FIFO.
UNINTERRUPTIBLE = """
    rank = Rank()
    rank.step()
    if first_time():
        os.mkfifo("fifo")
        actions = [(os.POSIX_SPAWN_OPEN, 0, "fifo", os.O_RDONLY, 0)]
        os.posix_spawn("/bin/true", ["true"], os.environ, file_actions=actions)
    rank.end()
"""


def test_an_uninterruptible_rank_answers_by_another_thread(folder: Path) -> None:
    ended = supervise(folder, UNINTERRUPTIBLE, "--hang-timeout", "step=1s")
    assert ended.code == 0, ended.said
    (hang,) = ended.events(ev.HangDetected)
    assert "its process is uninterruptible" in hang.reason
    (artefact,) = (ended.run.path / name for name in hang.artefacts if "rank-00000" in name)
    text = artefact.read_text()
    lines = (folder / "train.py").read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if "os.posix_spawn(" in line)
    assert f'train.py", line {number} in <module>' in text
    assert ": D (disk sleep)" in text


DIES_UNSEEN = """
    rank = Rank()
    rank.step()
    if first_time() and os.fork() == 0:
        os.setsid()
        other = Rank(1)
        other.step()
        supervisor = "/proc/" + os.environ["WALRECOVER_SUPERVISOR"].split(":")[0]
        while "rank-00001.beat" not in open(supervisor + "/maps").read():
            time.sleep(0.01)
        # The look that has mapped it takes its pid, too; behind it the supervisor sleeps.
        while open(supervisor + "/stat").read().rpartition(") ")[2][0] != "S":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    elif os.path.exists("again"):
        rank.end()
    else:
        open("again", "w").close()
        time.sleep(600)
"""


def test_a_rank_whose_process_is_gone_is_named(folder: Path) -> None:
    ended = supervise(folder, DIES_UNSEEN, "--hang-timeout", "step=2s")
    assert ended.code == 0, ended.said
    (hang,) = ended.events(ev.HangDetected)
    assert hang.reason.startswith("the process of rank 1 is gone since step 1")


# --- no false alarm -----------------------------------------------------------------------------

SLOW = """
    rank = Rank()
    for _ in range(4):
        time.sleep(0.8)
        rank.step()
    rank.beat.say("snapshot")
    time.sleep(3.5)
    rank.end()
"""


def test_slow_steps_and_a_long_save_are_no_hang(folder: Path) -> None:
    ended = supervise(folder, SLOW, "--hang-timeout", "step=3s")
    assert ended.code == 0, ended.said
    assert ended.events(ev.HangDetected) == []
    measured = ended.events(ev.PhasesMeasured)[-1].phases
    assert 0.7 < measured["step"].median < 2.0
    assert {"start-up", "first-step", "step"} <= set(measured)


SILENT = "import time; time.sleep(2); print('done')"


def test_a_script_that_never_attaches_is_left_alone_unless_start_up_has_a_limit(
    folder: Path,
) -> None:
    assert supervise(folder, SILENT, "--hang-timeout", "1s").code == 0
    only_once = ("--max-restarts", "0")
    ended = supervise(folder, SILENT, "--hang-timeout", "start-up=1s", *only_once)
    assert ended.code == 128 + signal.SIGTERM
    (hang,) = ended.events(ev.HangDetected)
    assert (hang.rank, hang.phase) == (None, "start-up")


def test_a_supervisor_that_was_stopped_finds_nobody_hanging(folder: Path) -> None:
    script = folder / "train.py"
    code = "rank = Rank()\nrank.step()\nprint('up', flush=True)\ninput()\nrank.step()\nrank.end()\n"
    script.write_text(textwrap.dedent(RANK) + code)
    root = folder / ".walrecover"
    options = ["--name", "run", "--hang-timeout", "step=3s", "--standby", "off"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "walrecover.cli",
            "run",
            *options,
            "--",
            sys.executable,
            str(script),
        ],
        env={**os.environ, "WALRECOVER_DIR": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    try:
        process.wait(4)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGCONT)
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 0, said
    assert Ended(0, said, RunDir(root, "run")).events(ev.HangDetected) == []


# --- bad children -------------------------------------------------------------------------------

STUBBORN = """
    import subprocess
    rank = Rank()
    rank.step()
    if not first_time():
        rank.end()
        sys.exit()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:  # a daemon: twice forked, in a session of its own, deaf, without our files
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.closerange(0, 3)
        with open(sys.path[0] + "/daemon", "w") as file:
            file.write(str(os.getpid()))
        while True:
            time.sleep(60)
    os.wait()
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(60)
"""


def test_a_child_that_is_deaf_to_term_and_its_daemon_are_ended_before_the_next_attempt(
    folder: Path,
) -> None:
    ended = supervise(folder, STUBBORN, "--hang-timeout", "step=1s")
    assert ended.code == 0, ended.said
    first, last = ended.events(ev.WorkerExited)
    assert (first.cause, first.signal, last.cause) == ("hang", signal.SIGKILL, "done")
    daemon = int((folder / "daemon").read_text())
    assert is_gone(daemon)
    (hang,) = ended.events(ev.HangDetected)
    (others,) = (ended.run.path / name for name in hang.artefacts if "processes" in name)
    assert f"pid {daemon} (" in others.read_text()
