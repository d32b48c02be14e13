"""`make torture-arena`: 500 trainings with an arena, each ended at some moment, with or without its
saver.

    make torture-arena ARGS="--rounds 50 --seed 7"

Every round must leave the last commit that was acknowledged, states that are whole, and neither a
process, nor shared memory, nor a temporary file. Where only the training process was killed, what
it had captured last is committed, or the journal says why not. The counts go to
specs/campaigns/arena.json.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.campaigns import report
from tests.streams import read
from tests.support.forks import Forks
from tests.support.protocol import candidates, check_state, holder
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.manifest import digest_of
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.saver import offers, taking
from walrecover.saver.offering import OFFERED_SECONDS

ENDINGS = ["SIGKILL", "SIGSEGV", "SIGTERM", "the saver, then SIGKILL", "both at once"]
MOST_SECONDS = 0.12
OFFER_ENDS_SECONDS = OFFERED_SECONDS / 2
LOST = "the last events of its process were lost with it"


class Failed(Exception):
    """A round did not leave what it must."""


def one_round(forks: Forks, folder: Path, dice: random.Random) -> dict[str, int]:
    run = RunDir(folder / ".walrecover", "a-run")
    run.create()
    entry = begin_attempt(run, holder()).entry
    notes = folder / "notes"
    how = dice.choice(ENDINGS)
    slots = dice.choice([2, 3])
    offering = dice.random() < 0.5
    pid = forks.start(
        "tests.support.capturing:endless", root=str(run.root), notes=str(notes), slots=slots,
        offers=offering,
    )  # fmt: skip
    commits = dice.randint(0, 3)
    wait_until(lambda: notes.exists() and "captured" in notes.read_text())
    wait_until(lambda: len(_said(notes, "committed")) >= commits)
    time.sleep(dice.uniform(0, MOST_SECONDS))
    _end(pid, how, _said(notes, "saver"), dice)
    forks.wait(pid)
    wait_until(lambda: not (found := _processes_of(run)) - offers.settled(run, found))
    _check(run, entry.number, entry.nonce, notes, how)
    counts = collections.Counter({how: 1, "commits": len(_said(notes, "committed"))})

    def nothing_is_left() -> bool:
        # One that its training had just begun to start comes later, saves and offers.
        counts.update(_end_offers(run, dice))
        return not _processes_of(run)

    wait_until(nothing_is_left)
    return counts


def _end(pid: int, how: str, savers: list[int], dice: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        if how in ("the saver, then SIGKILL", "both at once"):
            os.kill(savers[-1], signal.SIGKILL)
        if how == "the saver, then SIGKILL":
            time.sleep(dice.uniform(0, 2 * MOST_SECONDS))
    os.kill(pid, signal.Signals[how] if how.startswith("SIG") else signal.SIGKILL)


def _end_offers(run: RunDir, dice: random.Random) -> dict[str, int]:
    """As a next attempt does that takes them, one that starts anew, or none."""
    offering = offers.settled(run, _processes_of(run))
    if not offering or not candidates(run):
        return {}
    how = dice.choice(["taken", "superseded", "killed"])
    if how == "superseded":
        begin_attempt(run, holder(), resume="never")
    elif how == "killed":
        for pid in offering:
            os.kill(pid, signal.SIGKILL)
    else:
        source = taking.take(run, candidates(run)[0], 0, 1)
        if source.memory is None:
            raise Failed(f"what was offered is refused: {source.refused}")
        data = memoryview(source.memory).cast("B")
        for digest, (offset, nbytes) in source.places.items():
            if digest_of(data[offset : offset + nbytes]) != digest:
                raise Failed("what was offered is not what its digests say")
    wait_until(lambda: not offering & _processes_of(run), OFFER_ENDS_SECONDS)
    return {f"offers {how}": 1}


def _said(notes: Path, kind: str) -> list[int]:
    lines = [line.split() for line in notes.read_text().splitlines()]
    return [int(words[1]) for words in lines if words[0] == kind]


def _check(run: RunDir, number: int, nonce: str, notes: Path, how: str) -> None:
    found = candidates(run)
    for ref in found:
        check_state(run, ref, world=1)
    newest = found[0].step if found else 0
    committed = max(_said(notes, "committed"), default=0)
    if newest < committed:
        raise Failed(f"step {committed} was acknowledged, and step {newest} is there")
    captured = max(_said(notes, "captured"))
    if how in ("SIGKILL", "SIGTERM") and newest < captured:
        path = run.stream(number, nonce, "saver-0")
        events = [event for _, event in read(path)] if path.exists() else []
        why = [
            event.reason
            for event in events
            if isinstance(event, ev.SnapshotAbandoned) and event.step > newest
        ]
        if not why or set(why) != {LOST}:
            raise Failed(f"step {captured} was captured, step {newest} is there: {why}")
    # A kill between a temporary name and its own leaves the former in the sequence (specs/05).
    left = [str(path) for path in run.snapshots.rglob(".*") if how.startswith("SIG")]
    if left:
        raise Failed(f"left behind: {left}")


def _processes_of(run: RunDir) -> set[int]:
    """Savers of this run that have not ended, and with them the arenas that they map. Not all have
    said their names: a training may die before it passes one on."""
    found = set()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(run.root) in Path(entry.path, "cmdline").read_text():
                found.add(int(entry.name))
    return found


def campaign(rounds: int, seed: int, folder: Path) -> dict[str, int]:
    dice = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    with Forks(adopts=True) as forks:
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(rounds):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                try:
                    counts.update(one_round(forks, Path(name), dice))
                except Exception as error:
                    error.add_note(f"in round {number} of seed {seed}")
                    raise
            counts["rounds"] += 1
        if len(os.listdir("/proc/self/fd")) != descriptors:
            raise Failed("descriptors are left open here")
    return dict(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        counts = campaign(given.rounds, given.seed, Path(name))
    report.write("arena", counts, given.seed, began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
