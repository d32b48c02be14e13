"""What savers offer to the next attempt, without torch: who may take it, and when it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.support.forks import Forks
from tests.support.protocol import candidates, holder
from tests.support.waiting import wait_until
from walrecover.commits import Attempt
from walrecover.entries import AttemptEntry, SnapshotRef
from walrecover.manifest import digest_of
from walrecover.processes import identity, started_at
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.saver import offers, roll, taking
from walrecover.saver.offering import OFFERED_SECONDS, is_wanted
from walrecover.saver.offers import Offer
from walrecover.sequence import Sequence

CHILD = "tests.support.capturing:rank"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(adopts=True) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    made.create()
    return made


def savers(run: RunDir) -> set[int]:
    return roll.of_run(run, psutil.pids)


def end_early(run: RunDir) -> bool:
    """Its savers end, and not only because nobody came for so long."""
    return wait_until(lambda: not savers(run), OFFERED_SECONDS / 4)


def killed(forks: Forks, run: RunDir, world: int = 1) -> SnapshotRef:
    """A snapshot whose ranks were killed, and whose savers offer what they hold."""
    begin_attempt(run, holder())
    given = {"root": str(run.root), "world": world, "then": "captured", "offers": True}
    pids = [
        forks.start(CHILD, rank=rank, notes=str(run.path / f"notes-{rank}"), **given)
        for rank in range(world)
    ]
    assert {forks.wait(pid) for pid in pids} == {-signal.SIGKILL}
    wait_until(lambda: len(offers.settled(run, savers(run))) == world)
    base = candidates(run)[0]
    # Settled is said first, and later what is offered: until then, that file is the saver's.
    made = [wait_until(partial(_made, run, base, rank)) for rank in range(world)]
    assert len(made) == world
    return base


def _made(run: RunDir, base: SnapshotRef, rank: int) -> Offer | None:
    found = offer_of(run, base, rank)
    return found if found.fd >= 0 or found.refused else None


def offer_of(run: RunDir, base: SnapshotRef, rank: int = 0) -> Offer:
    found = offers.read(run.meeting(base.attempt, base.nonce), rank)
    assert found is not None
    return found


def test_what_is_offered_is_what_its_digests_say_and_stays_when_its_saver_is_gone(
    forks: Forks, run: RunDir
) -> None:
    base = killed(forks, run)
    source = taking.take(run, base, 0, 1)
    assert end_early(run)
    assert source.memory is not None and source.refused == ""
    data = memoryview(source.memory).cast("B")
    for digest, (offset, nbytes) in source.places.items():
        assert digest_of(data[offset : offset + nbytes]) == digest
    data[:8] = b"scribble"  # this process's own: a tensor that is kept may be written to
    again = taking.take(run, base, 0, 1)
    assert again.memory is None and again.refused == "", "it is gone, which is no fault"


def test_another_number_of_ranks_has_the_offers_ended(forks: Forks, run: RunDir) -> None:
    base = killed(forks, run, world=2)
    assert len(savers(run)) == 2
    taking.leave(run, base, [0, 1])
    assert end_early(run)


def test_what_belongs_to_another_number_of_ranks_is_refused(forks: Forks, run: RunDir) -> None:
    base = killed(forks, run)
    source = taking.take(run, base, 0, 2)
    assert (source.memory, source.refused) == (None, "it is a capture of rank 0 of 1")
    assert end_early(run)


def test_the_offer_of_another_rank_is_refused_and_left_to_that(forks: Forks, run: RunDir) -> None:
    base = killed(forks, run, world=2)
    meeting = run.meeting(base.attempt, base.nonce)
    offers.say(meeting, 0, offer_of(run, base, rank=1))
    source = taking.take(run, base, 0, 2)
    assert source.memory is None and source.refused.endswith("is the saver of another rank")
    assert taking.take(run, base, 1, 2).memory is not None
    taking.leave(run, base, [0])
    wait_until(lambda: len(savers(run)) == 1)
    begin_attempt(run, holder(), resume="never")
    assert end_early(run)


def test_a_process_that_is_no_saver_is_never_ended(forks: Forks, run: RunDir) -> None:
    """A pid that was given out again, and a file that names this very process."""
    base = killed(forks, run)
    saver, meeting = offer_of(run, base).holder.pid, run.meeting(base.attempt, base.nonce)
    offers.say(meeting, 0, Offer(identity(), 3))
    source = taking.take(run, base, 0, 1)
    assert source.refused.endswith("is no saver of this run")
    offers.say(meeting, 0, Offer(msgspec.structs.replace(identity(), started=1.0), 3))
    assert taking.take(run, base, 0, 1) == taking.NOTHING
    os.kill(saver, signal.SIGKILL)
    assert end_early(run)


def test_an_offer_is_wanted_while_the_newest_attempt_goes_on_from_it(
    forks: Forks, run: RunDir
) -> None:
    base = killed(forks, run)
    mine = Attempt(base.attempt, base.nonce, 1)
    read = Sequence(run.sequence).read
    assert is_wanted(read(), mine)
    for _ in range(2):  # the attempt behind the next one, too
        later: AttemptEntry = begin_attempt(run, holder()).entry
        assert later.plan.base == base and is_wanted(read(), mine)
    assert started_at(offer_of(run, base).holder.pid) is not None
    begin_attempt(run, holder(), resume="never")
    assert not is_wanted(read(), mine)
    assert end_early(run)
    assert not is_wanted([], mine)
