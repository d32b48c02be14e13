"""Rot is found, told once, passed over by the next recovery, and built upon by nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_daemon import as_somebody_else
from tests.support.protocol import Launch, candidates, damage, entries_of, holder
from walrecover import snapshot
from walrecover.entries import SnapshotRef
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.scrubbing import Scrubbed, Scrubber, items_of, read

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    with Launch.begin(made) as launch:
        for _ in range(3):
            launch.train(2)
            launch.save()
    return made


class Scrubs:
    """A scrubber with a clock that stands still until it is told."""

    def __init__(self, run: RunDir) -> None:
        self.told: list[Scrubbed] = []
        self.now = 1000.0
        self._scrubber = Scrubber(run.root, self.told.append, cycle=100.0, clock=lambda: self.now)

    def cycle(self) -> list[Scrubbed]:
        """Until nothing is due."""
        self.told.clear()
        while not self._scrubber.turn():
            pass
        return self.told


def test_p8_a_flipped_bit_is_found_and_the_next_recovery_skips_it(run: RunDir) -> None:
    newest, before = candidates(run)[:2]
    damage(run, newest)
    told = Scrubs(run).cycle()
    assert [(one.step, one.newest) for one in told] == [(6, True), (4, False), (2, False)]
    assert told[0].damaged and told[0].news
    assert "rank-00001.safetensors" in told[0].problem
    assert not any(one.problem or one.news for one in told[1:])
    plan = begin_attempt(run, holder()).entry.plan
    assert (plan.base, [r.step for r in plan.rejected]) == (before, [6])


def test_it_is_news_once_and_again_when_it_is_mended(run: RunDir) -> None:
    scrubs, newest = Scrubs(run), candidates(run)[0]
    assert not any(one.news for one in scrubs.cycle())
    assert scrubs.cycle() == []
    damage(run, newest)
    scrubs.now += 101
    assert [one.step for one in scrubs.cycle() if one.news] == [6]
    again = Scrubs(run)  # it remembers, over its own end
    again.now = scrubs.now
    assert again.cycle() == []
    again.now = scrubs.now + 101
    assert [(one.step, one.news) for one in again.cycle() if one.problem] == [(6, False)]
    damage(run, newest)
    again.now += 101
    assert [(one.step, one.problem) for one in again.cycle() if one.news] == [(6, "")]


def test_new_snapshots_are_read_and_retired_ones_forgotten(run: RunDir) -> None:
    Scrubs(run).cycle()
    with Launch.begin(run) as launch:
        for _ in range(3):
            launch.train()
            launch.keep(launch.save())
    assert {one.step for one in Scrubs(run).cycle()} == {ref.step for ref in candidates(run)} - {6}
    kept = json.loads((run.root / "scrubbed.json").read_text())["readings"]
    assert {key.partition("/")[2] for key in kept} == {ref.manifest for ref in candidates(run)}


def test_what_is_retired_while_it_is_read_is_no_finding(run: RunDir) -> None:
    items = items_of(run)
    with Launch.begin(run) as launch:
        for _ in range(3):
            launch.train()
            launch.keep(launch.save())
    gone = [item for item in items if item.ref not in candidates(run)]
    assert gone
    assert [read(run, item) for item in gone] == [None] * len(gone)


def test_what_cannot_be_read_is_told_and_proves_nothing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(snapshot, "verify", refuse)
    told = Scrubs(run).cycle()
    assert all("cannot be read: [Errno 5]" in one.problem and not one.damaged for one in told)
    assert not list(run.attempts.rglob("distrusted.*"))


def test_p10_what_is_older_and_whole_stays_once_a_newer_one_has_rotted(tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with Launch.begin(run) as launch:
        for _ in range(2):
            launch.train(2)
            launch.keep(launch.save())
        newest = candidates(run)[0]
        damage(run, newest, "rank-00000.msgpack")
        Scrubs(run).cycle()
        launch.train(2)
        assert launch.keep(launch.save()) == ()
    assert [ref.step for ref in candidates(run)] == [6, 4, 2]
    whole = [ref.step for ref in candidates(run) if ref != newest]
    assert whole == [6, 2]
    for ref in candidates(run):
        if ref != newest:
            snapshot.verify(run, ref)


def test_nobody_references_what_has_rotted(run: RunDir) -> None:
    """`test_references.py` tells how a rank hears of it, and writes that line anew."""
    newest = candidates(run)[0]
    damage(run, newest)
    Scrubs(run).cycle()
    word = snapshot.distrusted(run, newest.attempt, newest.nonce, newest.name)
    assert word.exists()


def test_what_a_scrubber_died_over_is_read_in_another_way(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that cannot be read, where it is mapped, is a SIGBUS: the note before it stays."""
    ways: dict[int, list[bool]] = {}
    verify = snapshot.verify

    def dies(run: RunDir, ref: SnapshotRef, *, mapped: bool = False) -> object:
        ways.setdefault(ref.step, []).append(mapped)
        if ref.step == 6 and mapped:
            raise SystemExit("SIGBUS")
        return verify(run, ref, mapped=mapped)

    monkeypatch.setattr(snapshot, "verify", dies)
    with pytest.raises(SystemExit):
        Scrubs(run).cycle()
    assert {one.step for one in Scrubs(run).cycle()} == {6, 4, 2}
    assert ways == {6: [True, False], 4: [True], 2: [True]}


def test_a_run_that_cannot_be_read_holds_nothing_up(run: RunDir) -> None:
    other = RunDir(run.root, "other")
    other.create()
    (other.sequence / "00000001.json").write_bytes(b"x")
    (run.root / "scrubbed.json").write_bytes(b"{")
    assert len(Scrubs(run).cycle()) == 3


def test_a_run_that_may_not_be_looked_into_holds_nothing_up() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / ".walrecover"
        for run in (RunDir(root, "open"), RunDir(root, "closed")):
            with Launch.begin(run) as launch:
                launch.train()
                launch.save()
        for each in (Path(name), *Path(name).rglob("*")):
            os.chmod(each, 0o777)
        run.path.chmod(0)
        told: list[Scrubbed] = []

        def cycle() -> None:
            scrubber = Scrubber(root, told.append)
            while not scrubber.turn():
                pass
            assert [one.run for one in told] == ["open"]

        try:
            assert as_somebody_else(cycle) == 0
        finally:
            run.path.chmod(0o700)


# --- the process --------------------------------------------------------------------------------


@pytest.fixture
def scrubber(run: RunDir) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "walrecover.scrubber", str(run.root), "--cycle", "0.2s"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with process:
        yield process
        assert process.stdin
        process.stdin.close()
        assert process.wait(20) == 0


def line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout
    return json.loads(process.stdout.readline())


def test_a_process_behind_everybody_says_it_in_lines(
    run: RunDir, scrubber: subprocess.Popen[str]
) -> None:
    first = [line(scrubber) for _ in range(3)]
    assert {one["step"] for one in first} == {2, 4, 6}
    assert os.sched_getscheduler(scrubber.pid) == os.SCHED_IDLE
    assert all("problem" not in one and one["bytes"] > 0 for one in first)
    damage(run, candidates(run)[0])
    while not (found := line(scrubber)).get("problem"):
        pass
    assert (found["step"], found["newest"], found["news"], found["run"]) == (6, True, True, "a-run")
    assert entries_of(run)


def test_a_cycle_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.scrubber", str(tmp_path), "--cycle", "7"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--cycle 7: give a number and its unit, such as 12h or 7d" in done.stderr
