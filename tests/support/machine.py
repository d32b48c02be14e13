"""A stateful machine over journal, snapshots and recovery, checked against a simple model.

Owns the rules, the model and the counts. Two ranks; every rule may die at any of its failpoints
(`raise` stands for the death of that process: its objects are dropped, what was only in memory is
gone); attempts that were superseded go on, and wake with what they had read before.

The model is a list, `line`: the committed snapshots that recovery may choose from, oldest first.
A commit of the newest attempt appends; a plan cuts behind its base; a retirement removes.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.protocol import NAMES, Launch, check_state, completed, holder, kill
from walrecover import entries as model
from walrecover import failpoints, recovery, snapshot
from walrecover.entries import CommitEntry, Entry, RetirementEntry, SnapshotRef
from walrecover.errors import Corrupt, Fenced, StorageFailed
from walrecover.failpoints import FailpointReached
from walrecover.journal import Cursor, Reader, Report, StreamId
from walrecover.journal.stream import START
from walrecover.recovery import begin_attempt
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.snapshot import Disagreed

WORLD = 2
RETENTION = 2
MEMORY = Path("/dev/shm")

_SEQUENCE = [name for name in NAMES if name.startswith("sequence.")]
_ENTERED = {"sequence.entry.linked", "sequence.entry.synced"}


def _named(*starts: str) -> list[str]:
    return [name for name in NAMES if name.startswith(starts)]


PLANNING = [*_named("recovery."), *_SEQUENCE]
OPENING = _named("journal.create.", "restore.")
SYNCING = _named("journal.commit.", "journal.sync.")
VOTING = _named("shards.", "snapshot.vote.")
COMMITTING = [*_named("snapshot.manifest."), *_SEQUENCE, "snapshot.committed"]
KEEPING = ["snapshot.verified", "snapshot.retired", "snapshot.deleting", *_SEQUENCE]


class Counts:
    """What all machines of this process did."""

    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.behind: list[str] = []

    def clear(self) -> None:
        self.rules.clear()
        self.crashes.clear()
        self.behind.clear()

    def look_behind(self, rules: int, floor: int) -> None:
        """Which failpoints of a snapshot have crashed less than their share of `floor`, as far as
        `rules` have come."""
        share = floor * min(1.0, self.rules.total() / rules)
        names = dict.fromkeys([*VOTING, *COMMITTING, *KEEPING])
        self.behind = [name for name in names if self.crashes[name] < share]

    def fewest(self) -> int:
        return min(self.crashes[name] for name in NAMES)

    def lines(self) -> list[str]:
        crashed = " ".join(f"{name}={self.crashes[name]}" for name in NAMES)
        rules = " ".join(f"{name}={count}" for name, count in sorted(self.rules.items()))
        return [f"{self.rules.total()} rules: {rules}", f"crashes: {crashed}"]


COUNTS = Counts()


class Attempt:
    """A launch, the ranks of it that live, and what rank 0 has read and committed."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.living = set(range(WORLD))
        self.spent: dict[int, set[int]] = {}  # ranks that began to vote, by step
        self.voted: dict[int, set[int]] = {}
        self.own: list[CommitEntry] = []
        self.read: list[Entry] = []

    @property
    def label(self) -> str:
        return self.launch.entry.label

    def complete(self) -> bool:
        return self.voted.get(self.launch.step) == set(range(WORLD))

    def is_behind(self) -> bool:
        return bool(self.own) and self.own[-1].snapshot.step >= self.launch.step


# Passed where much has gone well before: else the floor of crashes costs twice the rules asked for.
_RARE = ["snapshot.committed", "snapshot.verified", "snapshot.retired", "snapshot.deleting"]


def _dying_at(drawn: int) -> str:
    """What is behind, as often as all else."""
    names = [*4 * _RARE, *COMMITTING, *KEEPING]
    if COUNTS.behind and drawn % 2:
        names = COUNTS.behind
    return names[drawn // 2 % len(names)]


def at(names: list[str], one_in: int = 3) -> st.SearchStrategy[str | None]:
    """One of these failpoints, as often as said; else none."""
    return st.sampled_from([None] * len(names) * (one_in - 1) + names)


crashing = st.integers(0, 9).map(lambda drawn: drawn == 7)
which = st.integers(0, 63)
rank_of = st.integers(0, WORLD - 1)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.run = RunDir(self.folder / ".walrecover", "a-run")
        self.sequence = Sequence(self.run.sequence)
        self.attempts: list[Attempt] = []
        self.newest = ""  # the label of the newest attempt, which may be nobody's any more
        self.base: SnapshotRef | None = None
        self.line: list[SnapshotRef] = []
        self.damaged: set[str] = set()
        self.needed: dict[str, set[tuple[str, str]]] = {}
        self.broken: set[tuple[str, str]] = set()  # file and tensor, "" for all of the file
        self.durable: dict[tuple[str, str], int] = {}

    # -- dying ----------------------------------------------------------------------------------

    def act(self, rule: str, crash: str | None, action: Callable[[], object]) -> bool:
        """Do it, dying at this failpoint if it is passed. False where it died."""
        COUNTS.rules[rule] += 1
        if crash is None:
            action()
            return True
        self._settle()
        failpoints.arm(f"{crash}:raise")
        try:
            action()
        except FailpointReached:
            return False
        except StorageFailed as error:
            if not _is_death(error):
                raise
            return False
        finally:
            COUNTS.crashes[crash] += bool(failpoints.passages().get(crash))
            failpoints.arm("")
        return True

    def _settle(self) -> None:
        """Nothing is left to do for anybody's writer, which would run into another's failpoint."""
        for attempt in self.attempts:
            for rank in attempt.living:
                self._sync(attempt, rank)

    def _sync(self, attempt: Attempt, rank: int) -> None:
        journal = attempt.launch.journals[rank]
        self._acknowledged(attempt, rank, journal.sync().lsn)

    def _acknowledged(self, attempt: Attempt, rank: int, lsn: int) -> None:
        self.durable[attempt.label, f"rank-{rank}"] = lsn

    def _die(self, attempt: Attempt, rank: int) -> None:
        attempt.living.discard(rank)
        kill(attempt.launch.journals[rank])
        if not attempt.living:
            self.attempts.remove(attempt)

    def _pick(self, drawn: int, rank: int | None = None) -> Attempt | None:
        """An attempt that lives (in this rank), the newest as often as all others together."""
        able = [a for a in self.attempts if rank is None or rank in a.living]
        if not able:
            return None
        return able[-1] if drawn % 2 else able[drawn // 2 % len(able)]

    # -- beginning ------------------------------------------------------------------------------

    @initialize()
    def create(self) -> None:
        self.run.create()

    @precondition(lambda self: len(self.attempts) < 3)
    @rule(crash=at(PLANNING, 4), opening=at(OPENING, 4))
    def begin(self, crash: str | None, opening: str | None) -> None:
        kept = list(self.line)
        while kept and kept[-1].manifest in self.damaged:
            kept.pop()
        begun: list[recovery.Begun] = []
        if self.act("begin", crash, lambda: begun.append(begin_attempt(self.run, holder()))):
            entry = begun[0].entry
        elif crash in _ENTERED or crash == "recovery.planned":
            last = self.sequence.read()[-1]
            assert isinstance(last, model.AttemptEntry)
            entry = last
        else:
            assert self._newest_in_sequence() == self.newest
            return
        expected = kept[-1] if kept else None
        assert entry.plan.base == expected
        assert [r.manifest for r in entry.plan.rejected] == [
            ref.manifest for ref in reversed(self.line[len(kept) :])
        ]
        self.line, self.base, self.newest = kept, expected, entry.label
        if begun:
            self._open(Launch(self.run, entry, WORLD), opening)

    def _open(self, launch: Launch, crash: str | None) -> None:
        attempt = Attempt(launch)
        if self.act("open", crash, launch.open):
            self.attempts.append(attempt)
            return
        for journal in launch.journals:
            kill(journal)

    def _newest_in_sequence(self) -> str:
        newest = model.newest_attempt(self.sequence.read())
        return newest.label if newest else ""

    # -- working --------------------------------------------------------------------------------

    @precondition(lambda self: self.attempts)
    @rule(who=which, steps=st.integers(1, 3), crash=crashing)
    def train(self, who: int, steps: int, crash: bool) -> None:
        attempt = self._pick(who)
        assert attempt is not None
        launch = attempt.launch
        launch.step += steps
        rank = min(attempt.living)

        def work() -> None:
            for living in attempt.living:
                for step in range(launch.step - steps + 1, launch.step + 1):
                    launch.journals[living].append(completed(step))

        if not self.act("train", "journal.append" if crash else None, work):
            self._die(attempt, rank)

    @precondition(lambda self: self.attempts)
    @rule(who=which, rank=rank_of, crash=at(SYNCING, 6))
    def sync(self, who: int, rank: int, crash: str | None) -> None:
        attempt = self._pick(who, rank)
        if attempt is None:
            return

        def work() -> None:
            attempt.launch.step += 1
            attempt.launch.journals[rank].append(completed(attempt.launch.step))
            self._sync(attempt, rank)

        if not self.act("sync", crash, work):
            self._die(attempt, rank)

    @precondition(lambda self: self.attempts)
    @rule(who=which, crash=at(VOTING, 6), both=st.booleans(), rank=rank_of)
    def vote(self, who: int, crash: str | None, both: bool, rank: int) -> None:
        attempt = self._pick(who)
        assert attempt is not None
        for voter in sorted(attempt.living) if both else [rank]:
            if voter in attempt.living:
                self._vote(attempt, voter, crash)

    def _vote(self, attempt: Attempt, rank: int, crash: str | None) -> None:
        launch = attempt.launch
        step = launch.step
        spent = attempt.spent.setdefault(step, set())
        if step == 0 or rank in spent:
            return
        spent.add(rank)
        overtaken = attempt.is_behind()

        def work() -> None:
            try:
                self._acknowledged(attempt, rank, launch.vote(rank).lsn)
            except StorageFailed as error:
                if _is_death(error) or not overtaken:
                    raise

        done = self.act("vote", crash, work)
        if done or crash == "snapshot.vote.after":
            attempt.voted.setdefault(step, set()).add(rank)
        if not done:
            self._die(attempt, rank)

    @precondition(lambda self: self.attempts)
    @rule(who=which, crash=at(COMMITTING))
    def commit(self, who: int, crash: str | None) -> None:
        attempt = self._pick(who, rank=0)
        if attempt is not None and attempt.launch.step > 0:
            self._commit(attempt, crash)

    def _commit(self, attempt: Attempt, crash: str | None) -> None:
        before = len(self.sequence.read())
        made: list[CommitEntry | None] = []
        refused: list[Exception] = []

        def work() -> None:
            try:
                made.append(attempt.launch.commit())
            except (Fenced, Disagreed, StorageFailed) as error:
                if _is_death(error):
                    raise
                refused.append(error)

        done = self.act("commit", crash, work)
        entered = self.sequence.read()[before:]
        if not done:
            self._die(attempt, 0)
        if not attempt.complete() or attempt.label != self.newest or attempt.is_behind():
            assert entered == []
            assert made in ([], [None])
            if done and attempt.complete():
                self._check_refusal(attempt, refused)
            return
        assert not refused
        expected = done or crash in _ENTERED or crash == "snapshot.committed"
        assert len(entered) == expected and all(isinstance(e, CommitEntry) for e in entered)
        for entry in entered:
            assert isinstance(entry, CommitEntry)
            assert entry.snapshot.step == attempt.launch.step
            self.line.append(entry.snapshot)
            attempt.own.append(entry)
            if self._needs(entry.snapshot) & self.broken:
                self.damaged.add(entry.snapshot.manifest)
            else:
                check_state(self.run, entry.snapshot)

    def _check_refusal(self, attempt: Attempt, refused: list[Exception]) -> None:
        kinds: set[type[Exception]] = {type(error) for error in refused}
        name = model.snapshot_name(
            attempt.launch.step, attempt.launch.entry.number, attempt.launch.entry.nonce
        )
        votes = list((self.run.snapshots / name).glob("rank-*.part"))
        if len(votes) < WORLD:
            assert kinds == set()  # a newer attempt has swept votes away, perhaps between two
        elif attempt.is_behind() and attempt.own[-1].snapshot.manifest in self.damaged:
            assert kinds <= {Fenced, Disagreed, StorageFailed} and kinds
        else:
            assert kinds == {Disagreed if attempt.label == self.newest else Fenced}

    @precondition(lambda self: any(attempt.own for attempt in self.attempts))
    @rule(who=which, crash=at(KEEPING))
    def keep(self, who: int, crash: str | None) -> None:
        able = [a for a in self.attempts if a.own and 0 in a.living]
        if able:
            self._keep(able[who % len(able)], crash)

    def _keep(self, attempt: Attempt, crash: str | None) -> None:
        superseded = attempt.label != self.newest
        before = len(self.sequence.read())
        lost: list[Exception] = []

        def work() -> None:
            try:
                attempt.launch.keep(attempt.own[-1], RETENTION)
            except (Corrupt, Fenced) as error:
                lost.append(error)

        done = self.act("keep", crash, work)
        entered = self.sequence.read()[before:]
        if not done:
            self._die(attempt, 0)
        if superseded:
            assert entered == [] and (lost or not done)
        if lost:
            assert superseded or attempt.own[-1].snapshot.manifest in self.damaged
        for entry in entered:
            assert isinstance(entry, RetirementEntry)
            self._retired(attempt, set(entry.manifests))

    def _retired(self, attempt: Attempt, gone: set[str]) -> None:
        """P10: only what lies below two that this attempt read back, one of them its own."""
        left = [ref for ref in self.line if ref.manifest not in gone]
        verified = [ref for ref in left if ref.manifest in attempt.launch.verified]
        assert len(verified) >= 2 and len(left) >= RETENTION
        assert left[-1] == self.line[-1]
        assert any(ref.nonce == attempt.launch.entry.nonce for ref in verified)
        newest_gone = [place for place, ref in enumerate(self.line) if ref.manifest in gone]
        above = [
            {path for path, _ in self._needs(ref)}
            for ref in verified
            if not newest_gone or self.line.index(ref) > newest_gone[-1]
        ]
        assert any(one.isdisjoint(other) for one in above for other in above)
        self.line = left

    @precondition(lambda self: any(a.living == {0, 1} for a in self.attempts))
    @rule(who=which, times=st.integers(1, 4), crash=at([*VOTING, *COMMITTING, *KEEPING], 2),
          dying=rank_of)  # fmt: skip
    def save(self, who: int, times: int, crash: str | None, dying: int) -> None:
        """Snapshots from their capture to what they replace, the last one dying on the way."""
        able = [a for a in self.attempts if a.living == {0, 1}]
        for left in reversed(range(times)):
            self._save(able[who % len(able)], None if left else crash, dying)

    @precondition(lambda self: any(a.own and a.living == {0, 1} for a in self.attempts))
    @rule(who=which, crash=st.integers(0, 167).map(_dying_at))
    def save_and_die(self, who: int, crash: str) -> None:
        """The same where there is something already."""
        able = [a for a in self.attempts if a.own and a.living == {0, 1}]
        self._save(able[who % len(able)], crash)

    def _save(self, attempt: Attempt, crash: str | None, dying: int = 0) -> None:
        """`dying`: which rank does so, where that is while it votes."""
        attempt.launch.step += 1
        for rank in sorted(attempt.living):
            self._vote(attempt, rank, crash if crash in VOTING and rank == dying else None)
        keeping = crash in KEEPING and crash not in _SEQUENCE
        if 0 in attempt.living:
            self._commit(attempt, None if keeping else crash)
        if 0 in attempt.living and attempt.own:
            self._keep(attempt, crash if crash in KEEPING else None)

    # -- late actors ----------------------------------------------------------------------------

    @precondition(lambda self: self.attempts)
    @rule(who=which)
    def read_and_sleep(self, who: int) -> None:
        """Rank 0 reads the sequence, and is stopped before it acts on it."""
        attempt = self._pick(who, rank=0)
        if attempt is not None and not attempt.read:
            COUNTS.rules["read_and_sleep"] += 1
            attempt.read = self.sequence.read()

    @precondition(lambda self: len(self.attempts) in (1, 2))
    @rule(who=which, saves=st.integers(0, 2), deletes=st.booleans(), crash=st.integers(0, 7))
    def be_overtaken(self, who: int, saves: int, deletes: bool, crash: int) -> None:
        """An attempt reads and sleeps; a newer one begins and commits; the sleeper wakes."""
        sleeper = self._pick(who, rank=0)
        if sleeper is None:
            return
        sleeper.read = sleeper.read or self.sequence.read()
        self.begin(None, None)
        for _ in range(saves):
            self._save(self.attempts[-1], None)
        if deletes:
            self._delete(sleeper, "snapshot.deleting" if crash == 0 else None)
        else:
            self._enter(sleeper, _SEQUENCE[crash] if crash < len(_SEQUENCE) else None)

    @precondition(lambda self: any(attempt.read for attempt in self.attempts))
    @rule(who=which, crash=crashing)
    def wake_and_delete(self, who: int, crash: bool) -> None:
        attempt = self._sleeper(who)
        if attempt is not None:
            self._delete(attempt, "snapshot.deleting" if crash else None)

    def _delete(self, attempt: Attempt, crash: str | None) -> None:
        """It goes on with what its old reading allows it to delete."""
        read, attempt.read = attempt.read, []
        before = self.sequence.read()
        if not self.act("wake_and_delete", crash, lambda: snapshot.delete_void(self.run, read)):
            self._die(attempt, 0)
        assert self.sequence.read() == before
        for ref in self.line:
            if ref.manifest not in self.damaged:
                check_state(self.run, ref)

    @precondition(lambda self: any(attempt.read for attempt in self.attempts))
    @rule(who=which, crash=at(_SEQUENCE))
    def wake_and_enter(self, who: int, crash: str | None) -> None:
        attempt = self._sleeper(who)
        if attempt is not None:
            self._enter(attempt, crash)

    def _enter(self, attempt: Attempt, crash: str | None) -> None:
        """It had decided to commit: its number is taken, since something was entered meanwhile."""
        read, attempt.read = attempt.read, []
        before = self.sequence.read()
        if len(before) == len(read):
            return
        entry = attempt.launch.entry
        snapshot_of = SnapshotRef(attempt.launch.step, entry.number, entry.nonce, "blake3:late")
        late = CommitEntry(id=secrets.token_hex(8), at=0.0, snapshot=snapshot_of)
        told: list[bool] = []
        if not self.act(
            "wake_and_enter",
            crash,
            lambda: told.append(Sequence(self.run.sequence).create_next(len(read), late)),
        ):
            self._die(attempt, 0)
        assert told in ([], [False])
        assert self.sequence.read() == before

    def _sleeper(self, drawn: int) -> Attempt | None:
        able = [a for a in self.attempts if a.read and 0 in a.living]
        return able[drawn % len(able)] if able else None

    # -- death and damage -----------------------------------------------------------------------

    @precondition(lambda self: len(self.attempts) > 1)
    @rule(who=which, rank=rank_of)
    def kill_rank(self, who: int, rank: int) -> None:
        attempt = self._pick(who, rank)
        if attempt is not None:
            COUNTS.rules["kill_rank"] += 1
            self._die(attempt, rank)

    @precondition(lambda self: sum(r.manifest not in self.damaged for r in self.line) > 1)
    @rule(drawn=which)
    def damage(self, drawn: int) -> None:
        COUNTS.rules["damage"] += 1
        whole = [ref for ref in self.line if ref.manifest not in self.damaged]
        ref = whole[-1 - drawn % len(whole)]
        names = [f"{ref.name}/manifest.json", *sorted({path for path, _ in self._needs(ref)})]
        name = names[drawn % len(names)]
        path = self.run.snapshots / name
        data = bytearray(path.read_bytes())
        place = drawn * 7919 % len(data)
        broken = {(name, key) for key in _tensors_at(name, bytes(data), place)}
        hit = {other.manifest for other in whole if self._needs(other) & broken}
        if len(hit) == len(whole):
            return  # the second damage to one line, after one to the other: nothing would be left
        data[place] ^= 1 << drawn % 8
        path.write_bytes(data)
        self.broken |= broken
        self.damaged |= hit | {ref.manifest}

    def _needs(self, ref: SnapshotRef) -> set[tuple[str, str]]:
        """What a snapshot is read from: files, as (path, ""), and tensors, as (path, key)."""
        if ref.manifest not in self.needed:
            manifest = json.loads((self.run.snapshots / ref.name / "manifest.json").read_bytes())
            self.needed[ref.manifest] = {(f"{ref.name}/manifest.json", "")} | {
                place
                for part in manifest["parts"]
                for place in [
                    *((path, "") for path in part["files"]),
                    *((at["file"], at["key"]) for at in part["tensors"].values()),
                ]
            }
        return self.needed[ref.manifest]

    @precondition(lambda self: self.line)
    @rule()
    def look_at_everything(self) -> None:
        """Whatever can be chosen still reads, and every acknowledged event is there."""
        COUNTS.rules["look_at_everything"] += 1
        for ref in self.line:
            if ref.manifest not in self.damaged:
                check_state(self.run, ref)
        self._check_events()

    def _check_events(self) -> None:
        records = recovery.fold_run(self.run, ()).records
        lsns = {(f"a{k.attempt}-{k.nonce}", k.writer): r.lsn for k, r in records.items()}
        for stream, lsn in self.durable.items():
            assert lsns[stream] >= lsn
        for record in records.values():
            assert not record.losses

    @invariant()
    def recovery_finds_what_the_model_says(self) -> None:
        if not self.run.exists():
            return
        entries = self.sequence.read()
        assert self._newest_in_sequence() == self.newest
        live = [commit.snapshot for commit in model.candidates(entries)]
        assert live == self.line[::-1]
        expected = next((ref for ref in live if ref.manifest not in self.damaged), None)
        verdict = recovery.choose(self.run, entries)
        assert verdict.base == expected
        assert len(verdict.rejected) == (live.index(expected) if expected else len(live))

    def teardown(self) -> None:
        failpoints.arm("")
        try:
            if self.run.exists():
                self._check_events()
        finally:
            for attempt in self.attempts:
                for rank in attempt.living:
                    kill(attempt.launch.journals[rank])
            shutil.rmtree(self.folder)


def _tensors_at(name: str, data: bytes, place: int) -> list[str]:
    """The keys of what this byte of a file belongs to; [""] where all of the file needs it."""
    if not name.endswith(".safetensors"):
        return [""]
    start = 8 + int.from_bytes(data[:8], "little")
    if place < start:
        return [""]
    spans = {k: at["data_offsets"] for k, at in json.loads(data[8:start]).items()}
    return [key for key, (begin, end) in spans.items() if begin <= place - start < end]


def _is_death(error: BaseException | None) -> bool:
    """Whether a journal's writer thread, or whoever it stands for, ran into a failpoint."""
    while error is not None:
        if isinstance(error, FailpointReached):
            return True
        error = error.__cause__
    return False


def examine_here(
    streams: Iterable[tuple[StreamId, Path]], after: Mapping[StreamId, Cursor] | None = None
) -> dict[StreamId, Report]:
    """As `journal.examine_all`, in this process: these journals are never damaged, and a child
    for every look would take most of the time."""
    reports = {}
    for stream, path in streams:
        first = (after or {}).get(stream, START)
        with Reader(path, stream) as reader:
            head = next(reversed([c for _, c in reader.batches(first)]), first)
        reports[stream] = Report(first.lsn + 1, head.lsn, head.chain)
    return reports


def run_machine(rules: int, floor: int = 0, *, seed: int, steps: int = 50, **options: Any) -> None:
    """Run so many rules at least, and on until each failpoint has crashed `floor` times or it is
    plain that one never will. The same seed gives the same rules."""
    chosen = settings(max_examples=50, stateful_step_count=steps, **options)
    draw = random.Random(seed)
    with mock.patch.object(recovery, "examine_all", examine_here):
        while COUNTS.rules.total() < rules or (
            COUNTS.fewest() < floor and COUNTS.rules.total() < 5 * rules
        ):
            COUNTS.look_behind(rules, floor)
            hypothesis.seed(draw.getrandbits(64))(Machine)
            run_state_machine_as_test(Machine, settings=chosen)  # type: ignore[no-untyped-call]
