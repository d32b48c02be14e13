"""Real children that die of it: cause, evidence and decision, as `show --json` has them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from walrecover import entries
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence

SCRIPTS = Path(__file__).parent / "scripts"
ENVIRON = {
    **{name: value for name, value in os.environ.items() if not name.startswith("WALRECOVER_")},
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "OMP_NUM_THREADS": "1",
}


def walrecover(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "walrecover.cli", *words]
    return subprocess.run(
        line,
        cwd=folder,
        **{"env": ENVIRON, "text": True, "capture_output": True, "timeout": 300, **more},
    )


def story(folder: Path) -> list[dict[str, Any]]:
    shown = walrecover(folder, "show", "--json")
    assert shown.returncode == 0, shown.stderr
    attempts: list[dict[str, Any]] = json.loads(shown.stdout)["attempts"]
    return attempts


# --- a training script, one run, an attempt for each --------------------------------------------

DEATHS = {
    "data": ("data", "is torn' on rank 0, in Samples.__getitem__ ("),
    "numeric": ("numeric", "BadLoss: loss is nan at step 2: the policy goes back to before it"),
    "out_of_memory": ("out_of_memory", "DefaultCPUAllocator"),
    "storage": ("storage", "OSError: [Errno 28] No space left on device on rank 0"),
    "communication": ("communication", "ConnectionRefusedError: [Errno 111] Connection refused"),
    "crash": ("crash", "killed by SIGSEGV"),
    "preempted": ("preempted", "SIGTERM reached it from outside"),
    "code": ("code", "ValueError: not enough values to unpack on rank 0, in fail ("),
}


@pytest.mark.slow(60)
def test_each_cause_has_its_class_its_evidence_and_its_decision(tmp_path: Path) -> None:
    """The last two attempts fail at the same step, which ends the run long before its budget."""
    (tmp_path / "walrecover.yaml").write_text("causes: {numeric: {action: rewind}}")
    words = [*DEATHS, "again", "never"]
    done = walrecover(
        tmp_path,
        *("run", "--max-restarts", "9", "--backoff", "0", "--"),
        *(sys.executable, str(SCRIPTS / "dying.py"), ",".join(words)),
    )
    attempts = story(tmp_path)
    told = "\n".join(f"{end['cause']}: {end['evidence']}" for end in attempts)
    for end, (cause, says) in zip(attempts, DEATHS.values(), strict=False):
        assert end["cause"] == cause, told
        assert says in end["evidence"], told
        assert end["fingerprint"].startswith(cause)
        assert end["decision"] == ("rewind" if cause == "numeric" else "restart")
        assert re.search(r"(at once|\(1 in a row\): in 0\.0 s)$", end["reason"]), end["reason"]
        assert f"attempt {end['attempt']} ended: {cause}: {end['evidence']}" in done.stderr
    assert len(attempts) == len(words) - 1, told
    first, rewound, *_, before, last = attempts
    assert (rewound["recovery_point"], attempts[2]["recovery_point"]) == (1, 1)
    assert attempts[2]["rejected"] == []  # the alarm came before the snapshot of what was bad
    assert "while fetching the next item" in first["evidence"]
    assert "dying.py:" in before["evidence"]
    assert (last["decision"], last["fingerprint"]) == ("stop", before["fingerprint"])
    assert last["reason"] == (
        f"attempt 9 ended with exit code 1 (code): a permanent error, ValueError after step "
        f"{before['last_step']} for the second time (attempts 8 and 9) with no new step in between"
    )
    assert done.returncode == 1
    assert f"ending: {last['reason']}" in done.stderr


GLOO = """
    import os, signal, sys
    import torch, torch.distributed as dist
    import walrecover

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    run = walrecover.attach(weight=weight, optimizer=optimizer, every="1steps")
    for step in run.loop(range(9)):
        if step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
        run.step()
"""


@pytest.mark.slow
def test_a_gloo_peer_that_is_killed_is_communication(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(GLOO))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = walrecover(tmp_path, "run", "--max-restarts", "0", "--", *torchrun, "train.py")
    (end,) = story(tmp_path)
    assert end["cause"] == "communication", done.stderr
    assert "on rank 0" in end["evidence"]
    assert "rank 1 ended without a word" in end["evidence"]
    assert (end["decision"], done.returncode) == ("stop", 1)


# --- commands that know nothing of torch --------------------------------------------------------

SEED = """
retry_policy:
  max_attempts: 3
  backoff_delay: 2s
  jitter: true
  on_errors:
    - TimeoutError
    - ConnectionReset
"""


def run_logged(folder: Path, code: str, *options: str) -> tuple[int, str]:
    """A Python command whose output goes to a file, as under Slurm."""
    (folder / "command.py").write_text(textwrap.dedent(code))
    with (folder / "output").open("w") as output:
        done = walrecover(
            folder,
            *("run", *options, "--", sys.executable, "command.py"),
            capture_output=False,
            stdout=output,
            stderr=output,
        )
    return done.returncode, (folder / "output").read_text()


def test_the_policy_of_the_seed_tries_what_it_lists_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "walrecover.yaml").write_text(SEED)
    code, said = run_logged(
        tmp_path,
        """
        from pathlib import Path
        runs = Path("runs")
        runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
        raise TimeoutError("the store") if len(runs.read_text()) < 3 else ValueError("a bug")
        """,
        *("--backoff", "0"),
    )
    assert code == 1
    ends = story(tmp_path)
    assert [end["decision"] for end in ends] == ["restart", "restart", "stop"]
    assert [end["cause"] for end in ends] == ["communication", "communication", "code"]
    assert "its output says: TimeoutError: the store" in ends[0]["evidence"]
    assert "ValueError is none of on_errors (TimeoutError, ConnectionReset)" in ends[2]["reason"]
    assert ends[2]["reason"] in said


def test_the_budget_of_the_seed_counts_the_first_attempt(tmp_path: Path) -> None:
    (tmp_path / "walrecover.yaml").write_text(SEED)
    code, said = run_logged(tmp_path, "raise TimeoutError('again')", "--backoff", "0")
    assert (code, len(story(tmp_path))) == (1, 3)
    assert "3 attempts in a row ended before training began" in said
    assert "(max_attempts 3)" in said


def test_a_script_that_never_attached_is_told_by_its_output_and_ends_at_its_confirmation(
    tmp_path: Path,
) -> None:
    code, said = run_logged(tmp_path, "import nothing_of_that_name", "--backoff", "0")
    assert code == 1
    ends = story(tmp_path)
    assert [end["cause"] for end in ends] == ["code", "code"]
    assert "ModuleNotFoundError: No module named 'nothing_of_that_name'" in ends[0]["evidence"]
    assert "permanent error, ModuleNotFoundError before the first step" in said
    shown = walrecover(tmp_path, "show").stdout
    assert f"→ ended     code: {ends[0]['evidence']}" in shown
    assert f"→ stop      {ends[1]['reason']}" in shown
    assert re.search(r"\bended\b.*\bcode\b", walrecover(tmp_path, "status").stdout)
    logged = walrecover(tmp_path, "log", "--type", "RestartDecided").stdout
    assert f"reason={ends[1]['reason']}" in logged


def test_an_end_that_its_supervisor_did_not_live_to_note_is_told(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "walrecover.cli", "run", "--"]
    with subprocess.Popen(
        [*line, "sh", "-c", "echo up; exec sleep 60"],
        cwd=tmp_path,
        env=ENVIRON,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        assert story(tmp_path)[0]["cause"] == ""  # it lives
        process.kill()
        process.communicate()
    (end,) = story(tmp_path)
    assert end["cause"] == "crash"
    assert end["evidence"] == (
        f"its supervisor (pid {process.pid}) was ended with it, and nobody saw how"
    )


def test_memory_that_python_cannot_have_is_out_of_memory(tmp_path: Path) -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
        bytearray(1 << 30)
    """
    run_logged(tmp_path, code, "--max-restarts", "0")
    (end,) = story(tmp_path)
    assert (end["cause"], end["decision"]) == ("out_of_memory", "stop")


def test_the_environment_is_changed_for_the_next_attempt_and_only_as_far_as_it_goes(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.yaml").write_text(
        """
        retry_policy: {backoff_delay: 0s}
        causes: {out_of_memory: {environment: {MICRO_BATCH: /2, LOADERS: /2}}}
        """
    )
    code = """
        import os
        print("micro batch", os.environ["MICRO_BATCH"], flush=True)
        if os.environ["MICRO_BATCH"] != "8":
            raise MemoryError("too large")
    """
    (tmp_path / "command.py").write_text(textwrap.dedent(code))
    with (tmp_path / "output").open("w") as output:
        done = walrecover(
            tmp_path,
            *("run", "--policy", "own.yaml", "--", sys.executable, "command.py"),
            capture_output=False,
            stdout=output,
            stderr=output,
            env={**ENVIRON, "MICRO_BATCH": "32"},
        )
    said = (tmp_path / "output").read_text()
    assert done.returncode == 0, said
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("micro")] == [
        *("32", "16", "8")
    ]
    ends = story(tmp_path)
    assert [end["environment"] for end in ends[:2]] == [{"MICRO_BATCH": "16"}, {"MICRO_BATCH": "8"}]
    assert ends[0]["reason"].endswith("MICRO_BATCH 32 → 16, LOADERS is not set: left alone")


def test_a_stop_by_term_is_preempted_and_shown_so(tmp_path: Path) -> None:
    script = "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); "
    script += "print('up', flush=True); signal.sigwait({15}); sys.exit(9)"
    line = [sys.executable, "-m", "walrecover.cli", "run", "--", sys.executable, "-c", script]
    with subprocess.Popen(
        line, cwd=tmp_path, env=ENVIRON, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 9
    (end,) = story(tmp_path)
    assert (end["cause"], end["decision"]) == ("preempted", "stop")
    assert end["evidence"] == "exit code 9 after it was asked to stop by SIGTERM"
    assert end["reason"] in said


@pytest.mark.parametrize(
    ("options", "text", "says"),
    [
        ([], "retry_policy: {backoff_delay: -2s}", "walrecover.yaml: $.retry_policy.backoff_delay"),
        (["--policy", "none.yaml"], "", "--policy none.yaml: there is no such file"),
        (["--policy", "."], "", "--policy .: Is a directory"),
    ],
)
def test_a_policy_that_cannot_be_used_is_bad_input_before_anything_is_written(
    tmp_path: Path, options: list[str], text: str, says: str
) -> None:
    (tmp_path / "walrecover.yaml").write_text(text)
    done = walrecover(tmp_path, "run", *options, "--", "true")
    assert done.returncode == 2
    assert done.stderr.startswith(f"walrecover: {says}")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".walrecover").exists()


def test_the_policy_in_force_is_printed_as_a_file_that_reads_back(tmp_path: Path) -> None:
    (tmp_path / "walrecover.yaml").write_text(SEED)
    printed = walrecover(tmp_path, "policy").stdout
    assert "max_attempts: 3" in printed
    (tmp_path / "copy.yaml").write_text(printed)
    copy = walrecover(tmp_path, "policy", env={**ENVIRON, "WALRECOVER_POLICY": "copy.yaml"})
    assert copy.stdout == printed
    schema = json.loads(walrecover(tmp_path, "policy", "--schema").stdout)
    assert "retry_policy" in schema["$defs"]["PolicyFile"]["properties"]


SNAPSHOT_OF_A_BAD_LOSS = """
    import threading
    import torch
    import walrecover
    from walrecover.journal import Journal
    from walrecover.session.alarm import Alarm

    asked = threading.Event()
    take, sync = Alarm.take, Journal.sync

    def late(self, step, scalars):
        if step == 3:  # until somebody waits for what the journal has to say
            asked.wait()
        take(self, step, scalars)

    def asking(self, *arguments):
        asked.set()
        return sync(self, *arguments)

    Alarm.take, Journal.sync = late, asking
    model = torch.nn.Linear(2, 1)
    run = walrecover.attach(model=model, every="1steps")
    for step in run.loop(range(6)):
        asked.clear()
        run.step(loss=float("nan") if step == 2 else 1.0)
"""


def test_no_snapshot_is_made_of_a_loss_that_has_gone_bad_however_late_that_is_heard(
    tmp_path: Path,
) -> None:
    (tmp_path / "walrecover.yaml").write_text("causes: {numeric: {action: rewind}}")
    (tmp_path / "train.py").write_text(textwrap.dedent(SNAPSHOT_OF_A_BAD_LOSS))
    done = walrecover(
        tmp_path,
        *("run", "--name", "run", "--max-restarts", "0", "--", sys.executable, "train.py"),
    )
    assert "BadLoss: loss is nan at step 3" in done.stderr, done.stderr
    found = entries.commits(Sequence(RunDir(tmp_path / ".walrecover", "run").sequence).read())
    assert [commit.snapshot.step for commit in found][-1:] == [2]
