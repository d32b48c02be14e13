"""What dead ranks left in memory: their savers agree on the newest step that all have, or on
none; nobody is waited for who never comes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.processes import identity
from walrecover.rundir import RunDir
from walrecover.saver import estate, roll
from walrecover.saver.estate import Estate


@given(st.lists(st.sets(st.integers(1, 6), max_size=3), min_size=2, max_size=4))
def test_all_settle_on_the_newest_step_that_all_have(
    tmp_path_factory: pytest.TempPathFactory, kept: list[set[int]]
) -> None:
    meeting = tmp_path_factory.mktemp("meeting")
    shares = [Estate(meeting, rank, len(kept)) for rank in range(len(kept))]
    for share, steps in zip(shares[:-1], kept, strict=False):
        assert share.settle(lambda kept=steps: kept) is None  # the last has not spoken
        assert not share.settled
    common = max(set.intersection(*kept), default=None)
    assert shares[-1].settle(lambda: kept[-1]) == common
    for share in shares[:-1]:
        assert share.settle(lambda: {99}) == common  # what it has said, it has said
    assert all(share.settled for share in shares)


def test_who_leaves_nothing_is_not_waited_for(tmp_path: Path) -> None:
    """One rank was killed; another ended by itself, and its saver only offers what it has."""
    share, other = Estate(tmp_path, 0, 2), Estate(tmp_path, 1, 2)
    assert share.settle(lambda: {3}) is None and not share.settled
    other.renounce()
    assert other.settled
    assert share.settle(lambda: {3}) is None and share.settled


def test_who_has_said_what_it_leaves_votes_no_more_unless_all_have_a_step_in_common(
    tmp_path: Path,
) -> None:
    share, other = Estate(tmp_path, 0, 2), Estate(tmp_path, 1, 2)
    assert not share.has_voted(1)
    other.settle(lambda: {3})
    share.renounce()
    assert share.has_voted(1)
    shares = [Estate(tmp_path / "common", rank, 2) for rank in (0, 1)]
    (tmp_path / "common").mkdir()
    for one in (*shares, shares[0]):
        one.settle(lambda: {3})
    assert not shares[0].has_voted(1) and not shares[1].has_voted(0), "for step 3 they will"


def test_a_single_rank_has_nobody_to_ask(tmp_path: Path) -> None:
    assert Estate(tmp_path, 0, 1).settled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(estate.time, "monotonic", lambda: now[0])
    yield now


def test_a_rank_without_a_saver_is_waited_for_a_moment(tmp_path: Path, clock: list[float]) -> None:
    share = Estate(tmp_path, 0, 2)
    assert share.settle(lambda: {3}) is None and not share.settled
    clock[0] += roll.STRANGER_SECONDS + 1
    assert share.settle(lambda: {3}) is None and share.settled


def test_a_saver_that_is_being_started_is_waited_for_longer(
    tmp_path: Path, clock: list[float]
) -> None:
    """On a busy machine that takes its time."""
    roll.announce(tmp_path, 1)
    share = Estate(tmp_path, 0, 2)
    share.settle(lambda: {3})
    clock[0] += roll.STRANGER_SECONDS + 1
    assert share.settle(lambda: {3}) is None and not share.settled


def test_a_saver_that_lives_is_waited_for_longer(tmp_path: Path, clock: list[float]) -> None:
    roll.enrol(tmp_path, 1)  # this process stands in for it
    share = Estate(tmp_path, 0, 2)
    share.settle(lambda: {3})
    clock[0] += roll.STRANGER_SECONDS + 1
    assert share.settle(lambda: {3}) is None and not share.settled
    clock[0] += estate.PATIENCE_SECONDS
    assert share.settle(lambda: {3}) is None and share.settled


def test_a_saver_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    gone = msgspec.structs.replace(identity(), started=1.0)
    (tmp_path / "rank-00001.saver").write_bytes(msgspec.json.encode(gone))
    share = Estate(tmp_path, 0, 2)
    assert share.settle(lambda: {3}) is None and share.settled


def test_where_the_folder_was_taken_away_nobody_is_waited_for(tmp_path: Path) -> None:
    meeting = tmp_path / "attempt"
    roll.enrol(meeting, 0)
    roll.enrol(meeting, 1)  # lives: this process stands in for it
    share = Estate(meeting, 0, 2)
    shutil.rmtree(meeting)
    assert share.settle(lambda: {3}) is None and share.settled
    assert not meeting.exists()


def test_a_word_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    share = Estate(tmp_path, 0, 2)
    (tmp_path / "rank-00001.left").write_bytes(b"[3,")
    assert share.settle(lambda: {3}) is None and not share.settled


def test_processes_that_are_no_savers_of_the_run_are_not_taken_for_some(tmp_path: Path) -> None:
    assert roll.of_run(RunDir(tmp_path, "a-run"), lambda: [os.getpid(), 1, 1 << 22]) == set()


def test_a_rank_that_cannot_speak_is_heard_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    share = Estate(tmp_path / "file", 0, 2)  # nothing can be written there
    assert share.settle(lambda: {3}) is None and not share.settled


def test_what_was_kept_is_looked_at_once(tmp_path: Path) -> None:
    looks: list[int] = []
    share = Estate(tmp_path, 0, 2)
    for _ in range(3):
        share.settle(lambda: looks.append(1) or {3})  # type: ignore[func-returns-value]
    assert len(looks) == 1
