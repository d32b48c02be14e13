"""Captures in memory: what a killed process held is saved by its saver, so that no step is lost but
the one it was in; who kills the saver, or the supervisor, loses no more. The step is told by the
journal, never by what the test remembers.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.campaigns import memory
from tests.support.attempt import KILL
from tests.support.forkserver import ROOT, ForkServer
from tests.support.trial import KILLED, Trial
from tests.support.waiting import wait_until
from walrecover import entries, events, failpoints
from walrecover.processes import started_at
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir, list_runs
from walrecover.saver import roll
from walrecover.sequence import Sequence

from .test_two_ranks import Pair

MEMORY = {"WALRECOVER_EVERY": "1000steps", "WALRECOVER_MEMORY_EVERY": "1step"}
"""To disk the first steps go, by powers of two, and the end."""

SHAPES = (
    ("epoch_code", "step"),
    ("three_deep", "boundary"),
    ("persistent_workers", "step"),
    ("own_generators", "boundary"),
    ("scaled", "step"),
)


def run_of(folder: Path) -> RunDir:
    root = folder / ".walrecover"
    (name,) = list_runs(root)
    return RunDir(root, name)


def savers(run: RunDir) -> set[int]:
    return roll.of_run(run, psutil.pids)


def savers_end(run: RunDir) -> None:
    wait_until(lambda: not savers(run))


def is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def last_steps(run: RunDir) -> dict[int, int]:
    """Of each attempt, the last step that rank 0's stream holds."""
    found: dict[int, int] = {}
    for key, event in read_events(run, "rank-0"):
        if isinstance(event, events.StepCompleted):
            found[key.attempt] = max(event.step, found.get(key.attempt, 0))
    return found


def bases(run: RunDir) -> dict[int, int]:
    """Of each attempt, the step that it went on from."""
    found = entries.attempts(Sequence(run.sequence).read())
    return {e.number: e.plan.base.step if e.plan.base else 0 for e in found}


@pytest.mark.parametrize(("shape", "where"), SHAPES)
def test_a_process_that_is_killed_loses_the_step_it_was_in(
    server: ForkServer, folder: Path, shape: str, where: str
) -> None:
    whole = Trial(server, folder / "whole", f"shapes:{shape}")
    assert whole.run().status == 0
    trial = Trial(server, folder / "killed", f"shapes:{shape}", MEMORY)
    while (ended := trial.run((3, where, KILL))).status != 0:
        assert ended.status == KILLED, ended.output
        run = run_of(trial.folder)
        savers_end(run)
        assert trial.attempts < 40
    assert trial.attempts > 2
    assert trial.losses() == whole.losses()
    assert trial.result() == whole.result()
    last, known = last_steps(run), bases(run)
    assert all(known[number + 1] == last[number] for number in range(1, trial.attempts)), known


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_ranks_one_is_killed(server: ForkServer, folder: Path, rank: int) -> None:
    whole = Pair(server, folder / "whole", "training")
    assert [ended.status for ended in whole.run()] == [0, 0]
    pair = Pair(server, folder / "killed", "training", **MEMORY)
    while pair.run({rank: (4, "step", KILL)})[rank].status != 0:
        run = run_of(pair.folder)
        savers_end(run)
        assert pair.attempts < 20
    assert pair.results() == whole.results()
    assert pair.losses() == whole.losses()
    known = [base for _, base in sorted(bases(run).items())]
    assert all(later > base for base, later in itertools.pairwise(known)), known


def test_of_two_ranks_one_is_killed_with_a_capture_for_the_disk(
    server: ForkServer, folder: Path
) -> None:
    """Its events may be lost with the rank; then both have the step before, in memory."""
    pair = Pair(server, folder, "training", **(MEMORY | {"WALRECOVER_EVERY": "5steps"}))
    assert pair.run({0: (5, "boundary", KILL)})[0].status == KILLED
    run = run_of(folder)
    savers_end(run)
    assert committed(run) in ([4], [5])


def test_of_two_ranks_one_is_killed_when_the_other_has_come_to_the_end(
    server: ForkServer, folder: Path
) -> None:
    """Who waits for the other's part of the end, in vain, leaves what both have in memory."""
    pair = Pair(server, folder, "training", **MEMORY)
    pair.lose_one_at_the_end(15)
    savers_end(pair.directory)
    assert committed(pair.directory)[-1:] == [14]


def test_p4_a_restart_without_a_supervisor_waits_for_what_is_still_being_saved(
    server: ForkServer, folder: Path
) -> None:
    """Its saver stands still: an attempt that did not wait for it would fence it off."""
    trial = Trial(server, folder, "shapes:three_deep", {"WALRECOVER_EVERY": "3steps"})
    dying = trial.start(env={failpoints.ENVIRONMENT: "saver.digested:stop"})
    wait_until(lambda: list_runs(folder / ".walrecover"))
    run = run_of(folder)
    wait_until(lambda: last_steps(run).get(1, 0) >= 6)  # and waits for its saver there
    (saver,) = wait_until(lambda: set(filter(is_stopped, savers(run))))
    os.kill(dying.pid, signal.SIGKILL)
    assert dying.wait() == KILLED
    second = trial.start()
    try:
        with pytest.raises(AssertionError, match="never came true"):
            wait_until(lambda: len(bases(run)) > 1, seconds=2.0)
    finally:
        os.kill(saver, signal.SIGCONT)
    assert second.wait() == 0
    assert bases(run) == {1: 0, 2: 3}
    output = (folder / f"output-{trial.attempts}").read_text()
    assert "the attempt before is still being saved, which is waited for" in output


@pytest.mark.parametrize("where", ["forward", "backward", "loader", "between"])
def test_an_exception_saves_what_was_kept_in_memory(
    server: ForkServer, folder: Path, where: str
) -> None:
    """Also one behind the optimizer's step, where the state in the objects is no boundary's."""
    whole = Trial(server, folder / "whole", "failing:training")
    assert whole.run(at=0, where="nowhere").status == 0
    trial = Trial(server, folder / "failing", "failing:training", MEMORY)
    ended = trial.run(at=9, where=where)
    assert ended.status == 1
    assert "step 8 is saved on the way out" in ended.output
    assert trial.run(at=0, where="nowhere").status == 0
    assert bases(run_of(trial.folder))[2] == 8
    assert trial.losses() == whole.losses()
    assert trial.result() == whole.result()


def test_a_stop_saves_the_step_it_was_asked_at(server: ForkServer, folder: Path) -> None:
    trial = Trial(server, folder, "shapes:epoch_code", MEMORY)
    ended = trial.run((7, "step", int(signal.SIGTERM)))
    assert ended.status == 128 + signal.SIGTERM, ended.output
    assert "stopped by SIGTERM; step 7 is saved" in ended.output
    run = run_of(folder)
    savers_end(run)
    assert committed(run) == [7]  # and nothing that was only kept in memory


def command(folder: Path, *script: str) -> subprocess.Popen[str]:
    """`walrecover run`, in a folder of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "walrecover.cli", "run", "--name", "a-run", "--every"),
            *("40steps", "--memory-every", "1step", "--standby", "off", "--no-preflight", "--"),
            *(sys.executable, str(Path(__file__).parent / "scripts" / "killed.py"), *script),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def committed(run: RunDir) -> list[int]:
    found = Sequence(run.sequence).read()
    return [commit.snapshot.step for commit in entries.commits(found)]


def test_a_saver_that_is_killed_is_replaced(tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with command(tmp_path, "0") as process:
        wait_until(lambda: run.sequence.exists() and 40 in committed(run))
        (saver,) = savers(run)
        os.kill(saver, signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "another one goes on" in output
    assert {80, 120} <= set(committed(run))
    savers_end(run)


def test_a_supervisor_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with command(tmp_path, "61", "stay") as process:
        # In the middle of a step: in a boundary, a step's event may be there and its capture not.
        assert process.stdout and "stays\n" in process.stdout
        wait_until(lambda: last_steps(run) == {1: 60})
        (saver,) = savers(run)
        process.kill()
        process.wait()
        wait_until(lambda: started_at(saver) is None)
    assert last_steps(run) == {1: 60}
    with command(tmp_path, "0") as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert bases(run)[2] == 60
    assert 120 in committed(run)


def test_memory_that_is_not_given_costs_no_training(server: ForkServer, folder: Path) -> None:
    trial = Trial(server, folder, "memory:short_of_memory", MEMORY)
    ended = trial.run()
    assert ended.status == 0, ended.output
    assert "snapshots are written while training waits" in ended.output
    run = run_of(folder)
    refused = [e for _, e in read_events(run, "rank-0") if isinstance(e, events.ArenaRefused)]
    assert [event.reason for event in refused] == [
        "198 MiB cannot be shared: Cannot allocate memory"
    ]
    assert committed(run)[-1] == 12


def test_a_state_that_outgrows_its_slot_gets_another(server: ForkServer, folder: Path) -> None:
    trial = Trial(server, folder, "memory:growing", MEMORY)
    assert trial.run((8, "boundary", KILL)).status == KILLED
    run = run_of(folder)
    savers_end(run)
    ended = trial.run()
    assert ended.status == 0, ended.output
    assert bases(run)[2] == last_steps(run)[1]
    assert trial.result()["said"] == [n << 18 for n in range(1, 13)]


def test_captures_whose_events_the_disk_does_not_take_replace_none_that_can_be_saved(
    server: ForkServer, folder: Path
) -> None:
    trial = Trial(server, folder, "memory:on_a_disk_that_hangs", MEMORY)
    assert trial.run((10, "boundary", KILL)).status == KILLED
    run = run_of(folder)
    savers_end(run)
    last, base = last_steps(run)[1], max(committed(run), default=0)
    assert last - base <= 1, (last, base)


@pytest.mark.slow(40)
@pytest.mark.timeout(600)
def test_a_rehearsal_loses_the_steps_that_are_stated(folder: Path) -> None:
    """In small; at full size this is `make torture-memory`."""
    script = Path(__file__).parent / "scripts" / "rehearsed.py"
    counts = memory.rehearse(4, 7, folder, "5steps", [sys.executable, str(script)])
    assert memory.is_as_stated(counts), counts
