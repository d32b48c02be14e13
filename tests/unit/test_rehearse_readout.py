"""What a rehearsal reads from a run's directory: surviving history, what it replaced, the end."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.protocol import capture, completed, holder, open_stream, tensor
from walrecover import events as ev
from walrecover import plain, recovery, snapshot
from walrecover.rehearse import readout
from walrecover.rehearse.compare import compare, weights_digest
from walrecover.rehearse.readout import Unfinished
from walrecover.rundir import RunDir

RANKS = 2
OBJECTS = {"extra": {"kind": "dict", "state": {"best": 0.5, (1, 2): "x"}}}


def tree(step: int) -> dict[str, Any]:
    """A rank's plain state, as a session stores it; one leaf is the torch adapter's to build."""
    objects = {
        name: {"kind": value["kind"], "state": plain.to_tree(value["state"], name)}
        for name, value in OBJECTS.items()
    }
    objects["size"] = {"kind": "stateful", "state": ["x", "size", [2, 3]]}
    rng = {"python": (3, (1, 2), None), "torch": b"state"}
    place = {"ordinal": 0, "consumed": step, "begin": rng, "item": rng, "done": []}
    return {
        "objects": objects,
        "rng": plain.to_tree(rng, "rng"),
        "position": plain.to_tree({"places": [place], "done": []}, "position"),
    }


class Attempt:
    """One attempt of two ranks. A context manager: on leaving it, the journals are closed."""

    def __init__(self, run: RunDir) -> None:
        run.create()
        self.run, self.entry = run, recovery.begin_attempt(run, holder()).entry
        self.step = self.entry.plan.base.step if self.entry.plan.base else 0
        self.journals = [open_stream(run, self.entry, rank, RANKS) for rank in range(RANKS)]

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        for journal in self.journals:
            journal.close()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            for journal in self.journals:
                journal.append(completed(self.step))

    def save(self, weights: Sequence[float], *, finished: bool = False) -> None:
        data = struct.pack(f"<{len(weights)}f", *weights)
        for rank in range(RANKS):
            taken = capture(self.run.name, self.entry, rank, RANKS, self.step, end=finished)
            tensors = {"model.weight": tensor(data, "float32", (len(weights),))}
            taken = taken._replace(tensors=tensors, shared=frozenset(), tree=tree(self.step))
            snapshot.vote(self.run, taken, self.journals[rank])
        assert snapshot.commit(
            self.run,
            step=self.step,
            end=finished,
            attempt=self.entry.number,
            nonce=self.entry.nonce,
            world=RANKS,
            finished=finished,
        )


def perform(root: Path, *lives: int, weights: Sequence[float] = (1.0, 2.0), end: int = 9) -> RunDir:
    """A run whose attempts do so many steps each, two of them behind a snapshot, then the last one
    to the end."""
    run = RunDir(root, "run")
    for steps in lives:
        with Attempt(run) as attempt:
            attempt.train(steps - 2)
            attempt.save(weights)
            attempt.train(2)
    with Attempt(run) as attempt:
        attempt.train(end - attempt.step)
        attempt.save(weights, finished=True)
    return run


def test_the_surviving_history_is_whole_and_the_rest_superseded(tmp_path: Path) -> None:
    found = readout.outcome(perform(tmp_path, 4, 3))
    assert [sorted(steps) for steps in found.history] == [list(range(1, 10))] * 2
    # Attempt 1: snapshot at 2, killed at 4. Attempt 2: snapshot at 3, killed at 5.
    assert sorted((one.attempt, one.rank, one.step) for one in found.superseded) == [
        (attempt, rank, step)
        for attempt, steps in ((1, (3, 4)), (2, (4, 5)))
        for rank in (0, 1)
        for step in steps
    ]
    assert found.final.step == 9


def test_an_undisturbed_run_and_a_killed_one_read_alike(tmp_path: Path) -> None:
    calm = readout.outcome(perform(tmp_path / "calm"))
    killed = readout.outcome(perform(tmp_path / "killed", 4, 3))
    assert calm.history[0][1].opening and not calm.history[0][2].opening
    assert calm.history[0][3].more == killed.history[0][3].more != {}
    assert compare(calm, killed) is None
    assert weights_digest(calm.final) == weights_digest(killed.final)


def test_the_first_element_that_differs_is_found(tmp_path: Path) -> None:
    many = [float(n) for n in range(readout.CHUNK_BYTES // 2)]
    calm = perform(tmp_path / "calm", weights=many)
    for place in (0, 7, len(many) - 1):
        changed = [*many[:place], -0.5, *many[place + 1 :]]
        killed = perform(tmp_path / f"{place}", weights=changed)
        found = compare(readout.outcome(calm), readout.outcome(killed))
        assert found is not None
        assert found.what == "model.weight"
        assert readout.first_elements(calm, killed, 0, "model.weight") == (
            f"{many[place]!r} (element {place})",
            f"-0.5 (element {place})",
        )
    assert readout.first_elements(calm, calm, 0, "model.weight") is None
    assert readout.first_elements(calm, calm, 0, "model.bias") is None


def test_scalars_that_arrived_later_belong_to_their_step(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "run")
    with Attempt(run) as attempt:
        attempt.train(3)
        for journal in attempt.journals:
            journal.append(ev.ScalarsArrived(step=2, scalars={"late": 7.0}))
        attempt.save((1.0,), finished=True)
    steps = readout.outcome(run).history[1]
    assert steps[2].scalars == {"loss": 0.25, "late": 7.0}
    assert "late" not in steps[3].scalars


def test_a_run_without_its_end_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "run")
    with Attempt(run) as attempt:
        attempt.train(2)
        with pytest.raises(Unfinished, match="no snapshot at all"):
            readout.outcome(run)
        attempt.save((1.0,))
    with pytest.raises(Unfinished, match="newest snapshot is of step 2"):
        readout.outcome(run)


def test_timing_says_how_the_undisturbed_run_went(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "run")
    assert not readout.has_ranks(run)
    with Attempt(run) as attempt:
        journal = attempt.journals[0]
        for step, at in enumerate((10.0, 10.5, 11.0, 14.0), start=1):
            journal.append(ev.StepCompleted(step=step, at=at))
            journal.append(ev.ShardsWritten(step=step, files=(), at=at, seconds=0.25 * step))
        journal.append(ev.ShardsWritten(step=4, end=True, files=(), at=14.0, seconds=99.0))
    found = readout.timing(run)
    assert (found.steps, found.step_seconds, found.snapshot_seconds) == (4, 0.5, 0.625)
    assert found.longest == 3.0
    assert readout.has_ranks(run)
