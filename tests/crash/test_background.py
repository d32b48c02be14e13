"""What the training process does about a saver that cannot go on: it never waits for ever; and what
it gives to one that can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.support.capturing import background
from tests.support.protocol import capture, completed, holder, open_stream
from tests.support.waiting import wait_until
from walrecover import failpoints
from walrecover.commits import Key
from walrecover.entries import AttemptEntry
from walrecover.errors import StorageFailed
from walrecover.journal import Journal
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.saver import roll
from walrecover.session.background import Background


class Rank(NamedTuple):
    run: RunDir
    entry: AttemptEntry
    journal: Journal
    saver: Background
    said: list[str]


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    run.create()
    entry = begin_attempt(run, holder()).entry
    journal: Journal = open_stream(run, entry, 0, 1)
    said: list[str] = []
    made = Rank(run, entry, journal, background(run, entry, journal, said.append), said)
    yield made
    failpoints.arm("")
    made.saver.close()
    for pid in roll.of_run(run, psutil.pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    with contextlib.suppress(StorageFailed):
        journal.close()


@pytest.mark.timeout(60)
def test_p9_a_journal_that_failed_keeps_no_capture_waiting(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vote waits for the events of its step (rule 6), which will never come; here for a saver
    that stands still."""
    monkeypatch.setenv(failpoints.ENVIRONMENT, "saver.digested:stop")  # for the saver's process
    assert rank.saver.save(capture(rank.run.name, rank.entry, 0, 1, 1))
    failpoints.arm("journal.commit.before:enospc")
    rank.journal.append(completed(1))
    wait_until(lambda: rank.journal.failure is not None)
    assert not rank.saver.save(capture(rank.run.name, rank.entry, 0, 1, 2))
    assert any("step 2 was abandoned" in line for line in rank.said), rank.said


def test_a_state_without_a_tensor_is_saved_too(rank: Rank) -> None:
    """Counters, say, and generators."""
    for step in (1, 2):
        rank.journal.append(completed(step))
        whole = capture(rank.run.name, rank.entry, 0, 1, step)
        assert rank.saver.save(whole._replace(tensors={}, shared=frozenset()))
        assert rank.saver.wait(Key(step, False)), rank.said
