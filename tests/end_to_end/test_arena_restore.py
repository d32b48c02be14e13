"""Restored from the arena of the attempt before: the same bits as from disk, without reading it;
and from disk wherever that memory is gone, or is not to be trusted."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attempt import KILL
from tests.support.forkserver import ROOT, ForkServer
from tests.support.trial import KILLED, Trial
from tests.support.waiting import wait_until
from walrecover import entries, events, failpoints
from walrecover.arena.memory import Arena
from walrecover.entries import SnapshotRef
from walrecover.processes import started_at
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir
from walrecover.saver import offers
from walrecover.saver.offers import Offer
from walrecover.sequence import Sequence

from .test_memory import MEMORY, command, committed, run_of, savers, savers_end
from .test_two_ranks import Pair

SHAPE = "shapes:epoch_code"


@pytest.fixture
def supervised(server: ForkServer) -> Iterator[dict[str, str]]:
    """The environment of a run that the fork server starts again, as a supervisor does."""
    server.adopt(True)
    yield MEMORY | {"WALRECOVER_SUPERVISOR": f"{server.pid}:{started_at(server.pid)!r}:aa"}
    server.adopt(False)


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial(server, tmp_path_factory.mktemp("whole"), SHAPE)
    assert trial.run().status == 0
    return trial


def settle(run: RunDir) -> None:
    """As a supervisor waits."""
    wait_until(lambda: not (found := savers(run)) - offers.settled(run, found))


def resumed(run: RunDir, rank: int = 0) -> dict[int, events.Resumed]:
    """By attempt."""
    found = read_events(run, f"rank-{rank}")
    return {key.attempt: event for key, event in found if isinstance(event, events.Resumed)}


def base_of(run: RunDir) -> SnapshotRef:
    return entries.commits(Sequence(run.sequence).read())[-1].snapshot


def meeting_of(run: RunDir) -> Path:
    base = base_of(run)
    return run.meeting(base.attempt, base.nonce)


def offer_of(run: RunDir) -> Offer:
    """Of rank 0, once it is one."""

    def ready() -> Offer | None:
        found = offers.read(meeting_of(run), 0)
        return found if found and (found.fd >= 0 or found.refused) else None

    return wait_until(ready)


def killed(server: ForkServer, folder: Path, env: dict[str, str]) -> tuple[Trial, RunDir]:
    """A run whose first attempt was killed in its seventh step."""
    trial = Trial(server, folder, SHAPE, env)
    ended = trial.run((7, "step", KILL))
    assert ended.status == KILLED, ended.output
    return trial, run_of(folder)


def ends_as(trial: Trial, undisturbed: Trial) -> events.Resumed:
    """One more attempt, to its end. Returns how it was restored."""
    ended = trial.run()
    assert ended.status == 0, ended.output
    assert trial.result() == undisturbed.result()
    assert trial.losses() == undisturbed.losses()
    run = run_of(trial.folder)
    savers_end(run)
    return resumed(run)[max(resumed(run))]


def from_disk(how: events.Resumed) -> bool:
    return how.arena == 0 and how.disk > 0


def test_what_was_killed_is_restored_from_its_arena(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial
) -> None:
    trial, run = killed(server, folder, supervised)
    settle(run)
    while (ended := trial.run((5, "boundary", KILL))).status != 0:
        assert ended.status == KILLED, ended.output
        settle(run)
    assert trial.attempts > 2
    assert trial.result() == undisturbed.result()
    assert trial.losses() == undisturbed.losses()
    later = [how for number, how in resumed(run).items() if number > 1]
    assert all(how.arena > 0 and how.disk == 0 for how in later), later
    savers_end(run)


def test_what_has_failed_is_restored_from_its_arena(
    server: ForkServer, folder: Path, supervised: dict[str, str]
) -> None:
    whole = Trial(server, folder / "whole", "failing:training")
    assert whole.run(at=0, where="nowhere").status == 0
    trial = Trial(server, folder / "failing", "failing:training", supervised)
    assert trial.run(at=9, where="backward").status == 1
    run = run_of(trial.folder)
    settle(run)
    assert trial.run(at=0, where="nowhere").status == 0
    assert trial.result() == whole.result()
    assert resumed(run)[2].arena > 0
    savers_end(run)


def test_of_two_ranks_each_takes_its_own(
    server: ForkServer, folder: Path, supervised: dict[str, str]
) -> None:
    whole = Pair(server, folder / "whole", "training")
    assert [ended.status for ended in whole.run()] == [0, 0]
    pair = Pair(server, folder / "killed", "training", **supervised)
    while pair.run({1: (4, "step", KILL)})[1].status != 0:
        run = run_of(pair.folder)
        settle(run)
        assert pair.attempts < 20
    assert pair.results() == whole.results()
    assert pair.losses() == whole.losses()
    for rank in (0, 1):
        later = [how for number, how in resumed(run, rank).items() if number > 1]
        assert later and all(how.arena > 0 and how.disk == 0 for how in later), later
    savers_end(run)


def test_what_is_offered_is_what_was_saved_last_and_not_an_end_that_only_one_rank_has(
    server: ForkServer, folder: Path, supervised: dict[str, str]
) -> None:
    pair = Pair(server, folder, "training", **supervised)
    pair.lose_one_at_the_end(15)
    run = pair.directory
    settle(run)
    assert [ended.status for ended in pair.run()] == [0, 0]
    for rank in (0, 1):
        how = resumed(run, rank)[2]
        assert (how.step, how.disk) == (14, 0) and how.arena > 0, how
    savers_end(run)


def test_without_a_supervisor_nothing_is_offered(
    server: ForkServer, folder: Path, undisturbed: Trial
) -> None:
    trial, run = killed(server, folder, MEMORY)
    savers_end(run)
    assert from_disk(ends_as(trial, undisturbed))


def test_a_saver_that_is_killed_while_it_offers_costs_only_the_reading(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial
) -> None:
    trial, run = killed(server, folder, supervised)
    settle(run)
    os.kill(offer_of(run).holder.pid, signal.SIGKILL)
    savers_end(run)
    how = ends_as(trial, undisturbed)
    assert from_disk(how) and not how.refused


def test_memory_that_is_offered_takes_no_writes(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial
) -> None:
    trial, run = killed(server, folder, supervised)
    settle(run)
    offer = offer_of(run)
    fd = os.open(f"/proc/{offer.holder.pid}/fd/{offer.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"scribble", os.fstat(fd).st_size - 4096)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 0)
    finally:
        os.close(fd)
    assert ends_as(trial, undisturbed).arena > 0


STOPPED = {failpoints.ENVIRONMENT: "saver.settled:stop"}


def arena_of(saver: int) -> Arena:
    """Its memory, mapped here for writing, too; the saver stands still behind its last vote."""
    stat = Path(f"/proc/{saver}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    for name in os.listdir(f"/proc/{saver}/fd"):
        if "walrecover-arena" in os.readlink(f"/proc/{saver}/fd/{name}"):
            return Arena.attach(os.open(f"/proc/{saver}/fd/{name}", os.O_RDWR))
    raise AssertionError


def test_memory_that_was_scribbled_on_before_it_was_sealed_is_refused(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial
) -> None:
    trial, run = killed(server, folder, supervised | STOPPED)
    settle(run)
    (saver,) = savers(run)
    arena = arena_of(saver)
    for slot in arena.slots:
        header = slot.judge(lives=False).header
        if header is not None:
            ctypes.memset(slot.data_address(header), 0xAA, 1)
    arena.close()
    os.kill(saver, signal.SIGCONT)
    how = ends_as(trial, undisturbed)
    assert from_disk(how)
    assert how.refused == "its bytes are not those that were voted for"


def test_memory_that_somebody_may_still_write_to_is_refused(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial
) -> None:
    trial, run = killed(server, folder, supervised | STOPPED)
    settle(run)
    (saver,) = savers(run)
    arena = arena_of(saver)
    os.kill(saver, signal.SIGCONT)
    assert "busy" in offer_of(run).refused
    arena.close()
    how = ends_as(trial, undisturbed)
    assert from_disk(how) and "busy" in how.refused


@pytest.mark.parametrize("where", ["saver.taken", "restore.read", "restore.applied"])
def test_a_rank_that_is_killed_while_it_takes_leaves_nothing(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial, where: str
) -> None:
    trial, run = killed(server, folder, supervised)
    settle(run)
    saver = offer_of(run).holder.pid
    assert trial.run(env={failpoints.ENVIRONMENT: f"{where}:kill"}).status == KILLED
    how = ends_as(trial, undisturbed)
    assert from_disk(how) is (where != "saver.taken"), "behind that its saver has ended"
    assert started_at(saver) is None


def test_a_run_never_takes_from_another(
    server: ForkServer, folder: Path, supervised: dict[str, str], undisturbed: Trial
) -> None:
    other, theirs = killed(server, folder / "other", supervised)
    trial, run = killed(server, folder / "own", supervised)
    settle(theirs)
    settle(run)
    offer = offer_of(theirs)
    os.kill(offer_of(run).holder.pid, signal.SIGKILL)
    offers.say(meeting_of(run), 0, offer)
    how = ends_as(trial, undisturbed)
    assert from_disk(how) and "is no saver of this run" in how.refused
    assert ends_as(other, undisturbed).arena > 0


def test_an_offer_ends_when_the_run_starts_from_somewhere_else(
    server: ForkServer, folder: Path, supervised: dict[str, str]
) -> None:
    trial, run = killed(server, folder, supervised)
    settle(run)
    saver = offer_of(run).holder.pid
    child = trial.start((1, "step", int(signal.SIGSTOP)), {"WALRECOVER_RESUME": "never"})
    assert wait_until(lambda: started_at(saver) is None, 10)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_a_supervised_run_says_where_it_was_restored_from(tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with command(tmp_path, "45") as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert resumed(run)[2].arena > 0 and resumed(run)[2].disk == 0
    assert savers(run) == set()
    assert committed(run)[-1] == 120
    shown = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "show", "a-run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "every object of every rank, 2.5 KiB from memory" in shown, shown


def test_an_offer_ends_with_its_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    monkeypatch.setenv(failpoints.ENVIRONMENT, "saver.settled:stop")  # even one that stands still
    with command(tmp_path, "45") as process:
        (saver,) = wait_until(lambda: offers.settled(run, savers(run)))
        process.kill()
        process.wait()
        assert wait_until(lambda: started_at(saver) is None)
