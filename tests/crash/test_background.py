"""What the training process does about a saver that cannot go on: it never waits for ever."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from tests.support.protocol import capture, completed, holder, open_stream
from tests.support.waiting import wait_until
from walrecover import failpoints
from walrecover.commits import Key
from walrecover.errors import StorageFailed
from walrecover.journal import Journal
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.saver import roll
from walrecover.session.background import Background


@pytest.mark.timeout(60)
def test_p9_a_journal_that_failed_keeps_no_capture_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vote waits for the events of its step (rule 6), which will never come; here for a saver
    that stands still."""
    run = RunDir(tmp_path / ".walrecover", "a-run")
    run.create()
    entry = begin_attempt(run, holder()).entry
    journal: Journal = open_stream(run, entry, 0, 1)
    said: list[str] = []
    saver = Background(
        slots=2, run=run, journal=journal, attempt=entry.number, nonce=entry.nonce, rank=0, world=1,
        verified=frozenset(), retention=2, say=said.append,
    )  # fmt: skip
    monkeypatch.setenv(failpoints.ENVIRONMENT, "saver.digested:stop")  # for the saver's process
    try:
        assert saver.save(capture(run.name, entry, 0, 1, 1))
        failpoints.arm("journal.commit.before:enospc")
        journal.append(completed(1))
        wait_until(lambda: journal.failure is not None)
        assert not saver.save(capture(run.name, entry, 0, 1, 2))
        assert any("step 2 was abandoned" in line for line in said), said
    finally:
        failpoints.arm("")
        saver.close()
        for pid in roll.of_run(run, psutil.pids):
            psutil.Process(pid).kill()
        with contextlib.suppress(StorageFailed):
            journal.close()


def test_a_state_without_a_tensor_is_saved_too(tmp_path: Path) -> None:
    """Counters, say, and generators."""
    run = RunDir(tmp_path / ".walrecover", "a-run")
    run.create()
    entry = begin_attempt(run, holder()).entry
    journal: Journal = open_stream(run, entry, 0, 1)
    said: list[str] = []
    saver = Background(
        slots=2, run=run, journal=journal, attempt=entry.number, nonce=entry.nonce, rank=0, world=1,
        verified=frozenset(), retention=2, say=said.append,
    )  # fmt: skip
    try:
        for step in (1, 2):
            journal.append(completed(step))
            bare = capture(run.name, entry, 0, 1, step)._replace(tensors={}, shared=frozenset())
            assert saver.save(bare)
            assert saver.wait(Key(step, False)), said
    finally:
        saver.close()
        journal.close()
