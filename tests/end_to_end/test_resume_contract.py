"""The session's contract beside plain kills: stops, ends, errors, settings. One script, one word
of the contract each.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempt import KILL
from tests.support.forkserver import ForkServer
from tests.support.trial import KILLED, Trial
from walrecover import entries, recovery
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
Start = Callable[..., Trial]


@pytest.fixture
def trial(server: ForkServer, folder: Path) -> Start:
    """Makes a trial in a folder of its own."""

    def make(script: str, **env: str) -> Trial:
        number = len(list(folder.iterdir()))
        return Trial(server, folder / f"{number}", script, env)

    return make


def run_of(trial: Trial) -> RunDir:
    root = trial.folder / ".walrecover"
    (name,) = list_runs(root)
    return RunDir(root, name)


def commits(trial: Trial) -> list[entries.CommitEntry]:
    return list(entries.commits(Sequence(run_of(trial).sequence).read()))


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [True, False])
@pytest.mark.parametrize("killed", [True, False])
def test_more_epochs_than_last_time_equal_that_many_at_once(
    trial: Start, schedule: bool, killed: bool
) -> None:
    grown, straight = trial("odd:epochs"), trial("odd:epochs")
    assert straight.run(count=5, schedule=schedule).status == 0
    assert grown.run(count=3, schedule=schedule).status == 0
    if killed:
        grown.run_until_done((3, "step", KILL), count=5, schedule=schedule)
    else:
        assert grown.run(count=5, schedule=schedule).status == 0
    assert grown.result() == straight.result()
    assert grown.losses() == straight.losses()


@pytest.mark.parametrize(
    "script", ["epoch_code", "early_stop", "own_loop", "plain_outer_loop_with_leftover", "endless"]
)
def test_a_finished_run_started_again_does_nothing(trial: Start, script: str) -> None:
    finished = trial(f"shapes:{script}")
    assert finished.run().status == 0
    before, result = commits(finished), finished.result()
    steps = (finished.folder / "steps").read_text()
    status, output = finished.run()
    assert status == 0
    assert "(finished)" in output
    assert commits(finished) == before
    assert before[-1].finished
    assert finished.result() == result
    # The script may walk through a step behind the loop again; none counts.
    assert set((finished.folder / "steps").read_text().splitlines()) >= set(steps.splitlines())


def test_fewer_epochs_than_last_time_do_nothing(trial: Start) -> None:
    finished = trial("odd:epochs")
    finished.run(count=3)
    before, result = commits(finished), finished.result()
    assert finished.run(count=2).status == 0
    assert commits(finished) == before
    assert finished.result() == result


def test_fewer_epochs_than_the_snapshot_lies_in_are_an_error(trial: Start) -> None:
    killed = trial("odd:epochs")
    assert killed.run((8, "committed", KILL), count=3).status == KILLED  # in the third epoch
    before = commits(killed)
    status, output = killed.run(count=2)
    assert status == 1
    assert "NotRestored" in output
    assert commits(killed) == before
    killed.run_until_done((8, "step", KILL), count=3)


# -- stops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("script", ["epoch_code", "own_loop", "plain_inner_loop", "workers"])
def test_a_stopped_run_is_resumable_at_any_step(trial: Start, script: str, k: int) -> None:
    stopped, straight = trial(f"shapes:{script}"), trial(f"shapes:{script}")
    assert straight.run().status == 0
    # With no snapshot due at all: what is resumed from is the stop's own.
    stopped.env["WALRECOVER_EVERY"] = "1000steps"
    stops = stopped.run_until_done((k, "step", TERM))
    assert stops > 2
    assert stopped.losses() == straight.losses()
    assert stopped.result() == straight.result()


def test_a_stop_says_what_it_saved_and_runs_nothing_after_the_loop(trial: Start) -> None:
    stopped = trial("odd:saying", WALRECOVER_EVERY="1000steps")
    status, output = stopped.run((2, "step", TERM))
    assert status == 128 + TERM
    assert "stopped by SIGTERM; step 2 is saved, the same command resumes" in output
    assert output.count("going on") == 1
    assert output.count("stopping") == 1
    assert "after the loop" not in output
    assert not (stopped.folder / "result").exists()
    status, output = stopped.run()
    assert status == 0
    assert "resumes after step 2" in output
    assert stopped.result()["said"]["first"] == 2
    assert stopped.result()["said"]["last"] == 6
    assert re.fullmatch(r"saying-[0-9a-f]{4}", stopped.result()["said"]["name"])


def test_an_interrupt_is_a_keyboard_interrupt_at_the_boundary(trial: Start) -> None:
    stopped = trial("odd:saying", WALRECOVER_EVERY="1000steps")
    status, output = stopped.run((2, "step", INT))
    assert status == 130
    assert "KeyboardInterrupt" in output
    assert "step 2 is saved" in output
    status, output = stopped.run()
    assert "resumes after step 2" in output
    assert status == 0


# -- errors and exceptions ------------------------------------------------------------------------


def test_an_exception_is_not_swallowed_and_the_last_commit_stands(trial: Start) -> None:
    raising, straight = trial("odd:raising"), trial("odd:raising")
    straight.run(at=0)
    status, output = raising.run(at=4)
    assert status == 1
    assert "ValueError: as asked for" in output
    assert [c.snapshot.step for c in commits(raising)] == [1, 2, 3]
    assert raising.run(at=0).status == 0
    assert raising.result() == straight.result()
    assert raising.losses() == straight.losses()


@pytest.mark.parametrize("by", ["prefetching", "Prefetcher", "buffering", "threaded"])
@pytest.mark.parametrize("script", ["wrapped", "wrapped_inside"])
def test_what_reads_ahead_of_the_loop_is_an_error(trial: Start, script: str, by: str) -> None:
    ahead = trial(f"odd:{script}")
    status, output = ahead.run(by=by)
    assert status == 1
    assert "BadInput" in output
    assert "reads ahead" in output
    assert "outermost reader" in output
    assert by in output or by == "threaded"


@pytest.mark.parametrize("by", ["passing", "grouping"])
def test_what_only_passes_items_on_is_none(trial: Start, by: str) -> None:
    killed, straight = trial("odd:wrapped"), trial("odd:wrapped")
    assert straight.run(by=by).status == 0
    killed.run_until_done((2, "step", KILL), by=by)
    assert killed.result() == straight.result()


@pytest.mark.parametrize("by", ["prefetching", "Prefetcher", "buffering", "threaded"])
def test_reading_ahead_inside_the_loop_is_fine(trial: Start, by: str) -> None:
    killed, straight = trial("odd:wrapped"), trial("odd:wrapped")
    assert straight.run(by=by, outside=False).status == 0
    kills = killed.run_until_done((3, "step", KILL), by=by, outside=False)
    assert kills
    assert killed.result() == straight.result()
    assert "was read again from its beginning" in (killed.folder / "output-2").read_text()


@pytest.mark.parametrize("script", ["skipping_the_first", "as_a_generator"])
def test_a_plain_loop_may_skip_its_first_item(trial: Start, script: str) -> None:
    killed, straight = trial(f"odd:{script}"), trial(f"odd:{script}")
    assert straight.run().status == 0
    killed.run_until_done((2, "step", KILL))
    assert killed.result() == straight.result()


def test_two_loops_read_at_once_are_an_error(trial: Start) -> None:
    status, output = trial("odd:two_at_once").run()
    assert status == 1
    assert "give both to one, run.loop(a, b)" in output


def test_a_step_before_the_resumed_loop_is_an_error(trial: Start) -> None:
    lost = trial("odd:loopless")
    assert lost.run((3, "step", KILL), wrapped=True).status == KILLED
    before = commits(lost)
    status, output = lost.run(wrapped=False)
    assert status == 1
    assert "NotRestored" in output
    assert "before the loop that the snapshot was taken in" in output
    assert commits(lost) == before
    assert lost.run(wrapped=True).status == 0


def test_a_loader_that_has_become_too_short_is_an_error(trial: Start) -> None:
    shrunk = trial("odd:shrunk")
    assert shrunk.run((9, "step", KILL), samples=20).status == KILLED
    status, output = shrunk.run(samples=10)
    assert status == 1
    # The last step's snapshot may have been on its way only.
    assert re.search("had handed out [78] items when the snapshot was taken, and has 5 now", output)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("model optimizer scheduler", "model optimizer", "scheduler is in the snapshot, but was"),
        ("model optimizer", "model optimizer scheduler", "scheduler was attached, but the snap"),
    ],
)
def test_names_that_only_one_side_has(trial: Start, before: str, now: str, said: str) -> None:
    named = trial("odd:named")
    assert named.run((3, "step", KILL), names=before).status == KILLED
    status, output = named.run(names=now)
    assert status == 1
    assert "Mismatch" in output
    assert said in output
    assert "strict=False" in output
    status, output = named.run(names=now, strict=False)
    assert status == 0
    assert f"not restored: {said}" in output


def test_a_model_that_has_changed_is_named_by_five_keys_and_shapes(trial: Start) -> None:
    widened = trial("odd:widened")
    assert widened.run((3, "step", KILL), width=3).status == KILLED
    before = commits(widened)
    status, output = widened.run(width=5)
    assert status == 1
    assert "Mismatch: model does not fit the snapshot: 0.weight is 5×4 here and 3×4 there" in output
    assert "2.weight" in output
    assert "2.bias" not in output
    assert "and 6 more" in output
    assert f"All that differs: walrecover diff {run_of(widened).name}@2 widened.py" in output
    assert commits(widened) == before
    status, output = widened.run(width=5, strict=False)
    assert status == 0
    assert "not restored: model: 11 of 12 keys do not fit: 0.weight is 5×4 here and 3×4" in output


def test_a_run_that_is_at_work_is_busy(trial: Start) -> None:
    busy = trial("odd:saying")
    first = busy.start((2, "step", int(signal.SIGSTOP)))
    try:
        until_stopped(first.pid)
        status, output = busy.run()
        assert status == 1
        assert f"RunBusy: the run is held by pid {first.pid}" in output
    finally:
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 0


def until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    ["epoch_code", "evaluation_with_loop", "own_batches", "zipped", "workers", "own_generators"],
)
def test_disabled_trains_the_same_and_writes_nothing(trial: Start, script: str) -> None:
    enabled, disabled = trial(f"shapes:{script}"), trial(f"shapes:{script}")
    assert enabled.run().status == 0
    status, output = disabled.run(env={"WALRECOVER_MODE": "disabled"})
    assert status == 0
    assert "walrecover" not in output
    assert not (disabled.folder / ".walrecover").exists()
    assert disabled.result() == enabled.result()
    assert disabled.losses() == enabled.losses()


def test_resume_must_and_never(trial: Start) -> None:
    run = trial("odd:saying")
    status, output = run.run(env={"WALRECOVER_RESUME": "must"})
    assert status == 1
    assert "NothingToResume" in output
    assert run.run((3, "step", KILL)).status == KILLED
    status, output = run.run((3, "step", KILL), env={"WALRECOVER_RESUME": "never"})
    assert status == KILLED
    assert "starts from the beginning" in output
    status, output = run.run(env={"WALRECOVER_RESUME": "must"})
    assert status == 0
    assert "resumes after step 2" in output
    assert run.result()["said"]["first"] == 2


def test_what_has_changed_is_shown_or_an_error(trial: Start) -> None:
    run = trial("odd:saying")
    assert run.run((3, "step", KILL)).status == KILLED
    changed = {"PYTHONHASHSEED": "7"}
    status, output = run.run(env=changed | {"WALRECOVER_CHANGED": "error"})
    assert status == 1
    assert "PYTHONHASHSEED was not set, is 7" in output
    assert "WALRECOVER_CHANGED=error does not allow it" in output
    status, output = run.run(env=changed)
    assert status == 0
    assert "since the snapshot PYTHONHASHSEED was not set, is 7" in output


def test_a_second_attach_in_one_process_begins_another_attempt(trial: Start) -> None:
    twice, once = trial("odd:attached_twice"), trial("odd:attached_once")
    assert once.run().status == 0
    status, output = twice.run()
    assert status == 0, output
    assert "attempt 2 resumes after step 8" in output
    assert twice.result() == once.result()
    assert twice.losses() == once.losses()


# -- the journal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["plain_inner_loop", "accumulation", "early_stop"])
def test_every_step_is_in_the_journal(trial: Start, script: str) -> None:
    run = trial(f"shapes:{script}")
    assert run.run().status == 0
    state = recovery.fold_run(run_of(run))
    (stream,) = [record for key, record in state.records.items() if key.writer == "rank-0"]
    assert stream.steps == [[1, len(run.losses())]]
