"""The protocol's fifteen rules. Each has a check that holds, and that fails without the rule.

A rule is taken out by `BROKEN`: what one would have written without it. A rule whose check passes
then would be a rule that nothing holds.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.support.protocol import (
    FakeStream,
    Launch,
    attempt,
    candidates,
    capture,
    check_state,
    committed,
    completed,
    entries_of,
    holder,
    nonce_of,
    open_stream,
    recovery_point,
    reference,
    tensor,
)
from walrecover import entries as model
from walrecover import failpoints, pace, recovery, shards, snapshot, state
from walrecover import manifest as votes
from walrecover.entries import Entry, Plan, SnapshotRef
from walrecover.errors import Fenced, StorageFailed, WalrecoverError
from walrecover.failpoints import FailpointReached
from walrecover.journal import Cursor, Journal, Reader, Rewound
from walrecover.pace import Pace
from walrecover.policy import Ended, Policy, decide_restart
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.snapshot import Disagreed
from walrecover.state import StreamKey

Patch = pytest.MonkeyPatch


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "a-run")
    made.create()
    return made


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def saved(run: RunDir, *steps: int) -> list[SnapshotRef]:
    with Launch.begin(run) as launch:
        refs = []
        for step in steps:
            launch.train(step - launch.step)
            refs.append(launch.save().snapshot)
        return refs


def damage(run: RunDir, ref: SnapshotRef) -> Path:
    path = run.snapshots / ref.name / "rank-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


# --- the checks ---------------------------------------------------------------------------------


def one_sequence(run: RunDir) -> None:
    """Rule 1: whoever comes second loses, and nothing that was entered is replaced."""
    first, second = Sequence(run.sequence), Sequence(run.sequence)
    assert first.create_next(0, attempt(1))
    assert not second.create_next(0, attempt(2))
    assert Sequence(run.sequence).read() == [attempt(1)]


def names_are_written_once(run: RunDir) -> None:
    """Rule 2: a late actor of attempt 1 finishes its files of step 3 after attempt 2 made its
    own; neither mixes with the other."""
    with Launch.begin(run) as first, Launch.begin(run) as second:
        for launch in (first, second):
            launch.train(3)
        first.vote(0)
        kept = second.save().snapshot
        first.vote(1)
        check_state(run, kept)
        with pytest.raises(StorageFailed):
            second.vote(0)
        check_state(run, kept)


def what_leaves_the_chain_never_returns(run: RunDir) -> None:
    """Rule 3: step 6 was damaged, the run went on from 4; mending 6 brings nothing back."""
    refs = saved(run, 4, 6)
    good = damage(run, refs[1]).read_bytes()
    assert recovery.begin_attempt(run, holder()).entry.plan.base == refs[0]
    mended = bytearray(good)
    mended[-1] ^= 1
    (run.snapshots / refs[1].name / "rank-00001.safetensors").write_bytes(mended)
    snapshot.verify(run, refs[1])
    assert recovery_point(run) == refs[0]


def no_writer_waits_for_another(run: RunDir) -> None:
    """Rule 4: rank 1 stands still inside a transaction; rank 0 goes on."""
    entry = recovery.begin_attempt(run, holder()).entry
    with (
        open_stream(run, entry, 0, 2) as zero,
        open_stream(run, entry, 1, 2) as one,
        one._environment.handle.begin(write=True) as stopped,
    ):
        lsn = zero.append(completed(1))
        assert zero.sync(timeout=20.0).lsn == lsn
        stopped.abort()


def a_cursor_knows_what_it_has_read(run: RunDir) -> None:
    """Rule 4: after a power cut an LSN can come back as another event."""
    entry = recovery.begin_attempt(run, holder()).entry
    with open_stream(run, entry, 0, 1) as journal:
        journal.append(completed(1))
        head = journal.sync()
        with Reader(journal.path) as reader, pytest.raises(Rewound):
            list(reader.read(Cursor(head.lsn, bytes(16))))


def one_plan(run: RunDir) -> None:
    """Rule 5: what could only not be read is tried first by the next plan; damage is not."""
    refs = saved(run, 2, 4, 6)
    damage(run, refs[1])
    with pytest.MonkeyPatch.context() as patch:
        real = snapshot.read_regular

        def read(root: Path, relative: str, limit: int) -> bytes:
            if relative.startswith(refs[2].name):
                raise OSError(errno.EIO, "Input/output error")
            return real(root, relative, limit)

        patch.setattr(snapshot, "read_regular", read)
        plan = recovery.begin_attempt(run, holder()).entry.plan
    assert plan.base == refs[0]
    assert [(r.step, r.confirmed) for r in plan.rejected] == [(6, False), (4, True)]
    assert recovery.begin_attempt(run, holder()).entry.plan == Plan(refs[2], ranks=2)


def the_journal_comes_before_the_vote(run: RunDir) -> None:
    """Rule 6: a rank whose journal can no longer be written votes for nothing."""
    with Launch.begin(run) as launch:
        launch.train(2)
        for journal in launch.journals:
            journal.sync()
        failpoints.arm("journal.commit.before:raise")
        launch.train(1)
        try:
            for rank in (0, 1):
                launch.vote(rank)
        except StorageFailed:
            pass
        assert launch.commit() is None
        assert candidates(run) == []
        for journal in launch.journals:
            try:
                journal.close()
            except StorageFailed:
                continue


def the_events_lie_beside_the_shard(run: RunDir) -> None:
    """Rule 6: a lost host loses no history behind a commit."""
    from walrecover import plain

    with Launch.begin(run) as launch:
        launch.train(2)
        ref = launch.save().snapshot
        manifest = snapshot.load_manifest(run, ref)
        for part in manifest.parts:
            path = f"{ref.name}/rank-{part.rank:05d}.msgpack"
            kept = plain.decode(shards.read_plain(run.snapshots, path, part.files[path]))
            journal = launch.journals[part.rank]
            assert kept["events"] == journal.envelopes(0, part.lsn)
            assert part.lsn == journal.durable == journal.appended


def what_is_captured_follows_from_the_step(run: RunDir) -> None:
    """Rule 7: ranks that ask at different times, any number of times, agree."""
    paces = [Pace(10, 4), Pace(30, 7)]
    one = [step for step in range(1, 60) if pace.is_due(step, paces)]
    other = [step for step in range(1, 60) if pace.is_due(step, paces)]
    assert one == other == [1, 2, 4, 8, 12, 16, 20, 24, 28, 35, 42, 49, 56]


def votes_that_never_meet_are_abandoned(run: RunDir) -> None:
    """Rule 7: once a newer capture is committed, the older one's votes come too late."""
    with Launch.begin(run) as launch:
        launch.train(1)
        launch.vote(0)
        launch.train(1)
        newer = launch.save().snapshot
        launch.step -= 1
        launch.vote(1)
        with pytest.raises(Disagreed):
            launch.commit()
        assert candidates(run) == [newer]


def nothing_is_restored_but_commits(run: RunDir) -> None:
    """Rule 8: there is no arena yet. A plan can name only a commit; the day it can name an
    arena, this fails, and the rule wants a check of its own."""
    fields = ("base", "rejected", "fresh", "skips", "rewind", "ranks")
    assert Plan.__struct_fields__ == fields
    with Launch.begin(run) as launch:
        launch.train(1)
        launch.vote(0), launch.vote(1)
    assert recovery_point(run) is None


def retire_before_delete(run: RunDir) -> None:
    """Rule 9: at the moment of the first deletion the retirement stands in the sequence."""
    with Launch.begin(run) as launch:
        commits = []
        for _ in range(3):
            launch.train(1)
            commits.append(launch.save())
        for commit in commits[:2]:
            launch.keep(commit)
        failpoints.arm("snapshot.deleting:raise")
        with pytest.raises(FailpointReached):
            launch.keep(commits[2])
        failpoints.arm("")
        retired = model.retired(entries_of(run))
        assert retired == {commits[0].snapshot.manifest}
        check_state(run, commits[0].snapshot)
        for ref in candidates(run):
            check_state(run, ref)


def a_retired_shard_is_not_referenced(run: RunDir) -> None:
    """Rule 9: a manifest that references one is refused."""
    import msgspec

    with Launch.begin(run) as launch:
        refs = []
        for _ in range(5):
            launch.train(1)
            commit = launch.save()
            launch.keep(commit)
            refs.append(commit.snapshot)
        launch.train(1)
        zero, _ = launch.vote(0), launch.vote(1)
        at = next(iter(zero.files.values()))
        old = f"{refs[2].name}/rank-00000.safetensors"
        path = run.snapshots / next(iter(zero.files)).split("/")[0] / "rank-00000.part"
        path.write_bytes(
            votes.encode_part(msgspec.structs.replace(zero, files=zero.files | {old: at}))
        )
        with pytest.raises(Disagreed, match="belongs to a retired snapshot"):
            launch.commit()


def what_is_referenced_stays(run: RunDir) -> None:
    """Rule 9: a retired snapshot's shards stay as long as a live manifest lists them, whoever
    deletes, and whatever they had read."""
    with Launch.begin(run) as launch:
        readings = []
        for _ in range(7):
            launch.train(1)
            launch.keep(launch.save())
            readings.append(entries_of(run))
        older = [snapshot.load_manifest(run, ref).older_files() for ref in candidates(run)]
        assert all(older)
        for found in readings:
            snapshot.delete_void(run, found)
            for ref in candidates(run):
                check_state(run, ref)


def two_stay_that_share_no_file(run: RunDir) -> None:
    """Rule 10: damage of one file leaves one of them."""

    def retirable(files: Callable[[SnapshotRef], frozenset[str] | None]) -> tuple[int, ...]:
        found = [attempt(1), *(committed(step, 1) for step in range(1, 6))]
        seen = frozenset(reference(step, 1).manifest for step in range(1, 6))
        return tuple(ref.step for ref in model.retirable(found, seen, 2, files))

    assert retirable(lambda ref: frozenset({"one", ref.name})) == ()
    assert retirable(lambda ref: frozenset({f"line {ref.step % 2}"})) == (3, 2, 1)
    assert retirable(lambda ref: frozenset({f"line {ref.step > 3}"})) == (2, 1)
    assert retirable(lambda ref: None) == ()


def nothing_goes_before_it_is_replaced(run: RunDir) -> None:
    """Rule 10: a rewind's commits do not count, the base stays, two verified ones stay."""
    with Launch.begin(run) as launch:
        refs = []
        for _ in range(3):
            launch.train(2)
            commit = launch.save()
            refs.append(commit.snapshot)
            snapshot.verify(run, commit.snapshot)
    seen = {ref.manifest for ref in refs}
    damage(run, refs[2]), damage(run, refs[1])
    with Launch.begin(run) as launch:
        assert launch.entry.plan.base == refs[0]
        launch.verified |= seen
        for _ in range(2):
            launch.train(1)
            commit = launch.save()
            gone = model.retirable(entries_of(run), frozenset(launch.verified), 1)
            assert gone == ()
            check_state(run, refs[0])
            launch.keep(commit, retention=1)
        left = candidates(run)
        assert len(left) >= 2
        for ref in left[:2]:
            check_state(run, ref)


def any_interleaving_is_one_state(run: RunDir) -> None:
    """Rule 11: events are keyed by attempt, step and rank, and LSNs order one stream only."""
    entries = (attempt(1), committed(2, 1), attempt(2, reference(2, 1)))
    streams = {
        StreamKey(number, nonce_of(number), "rank-0"): [
            (lsn, completed(step)) for lsn, step in enumerate(steps, start=1)
        ]
        for number, steps in ((1, (1, 2, 3, 4)), (2, (3,)))
    }
    for order in itertools.permutations(streams):
        folded = state.fold(entries, {key: streams[key] for key in order})
        assert [(link.attempt, last) for link, last in folded.surviving()] == [(1, 2), (2, 3)]
        assert folded.superseded() == {"a1-00000001": [(3, 4)]}


def just_in_time(run: RunDir) -> None:
    """Rule 12: votes with another position, plan or replicated tensor do not make a snapshot."""

    def of_another_plan(launch: Launch) -> snapshot.Capture:
        return capture("a-run", launch.entry, 1, 2, launch.step)._replace(base="blake3:other")

    def elsewhere(launch: Launch) -> snapshot.Capture:
        return capture("a-run", launch.entry, 1, 2, launch.step, position="elsewhere")

    def of_other_weights(launch: Launch) -> snapshot.Capture:
        made = capture("a-run", launch.entry, 1, 2, launch.step)
        return made._replace(tensors={**made.tensors, "weights": tensor(b"x" * 48)})

    with Launch.begin(run) as launch:
        for make in (of_another_plan, elsewhere, of_other_weights):
            launch.train(1)
            launch.vote(0)
            snapshot.vote(run, make(launch), FakeStream())
            with pytest.raises(Disagreed):
                launch.commit()
        assert candidates(run) == []


def proof_compares_one_history(run: RunDir) -> None:
    """Rule 13: steps that left the chain are no part of the history that is compared."""
    refs = saved(run, 2, 4)
    damage(run, refs[1])
    with Launch.begin(run) as launch:
        launch.train(1)
    folded = recovery.fold_run(run)
    assert [(link.attempt, link.base, last) for link, last in folded.surviving()] == [
        (1, 0, 2),
        (2, 2, 3),
    ]


def recovering_again_changes_nothing(run: RunDir) -> None:
    """Rule 14: no state derives from the attempt's number, and no budget is burnt by it."""
    refs = saved(run, 2, 4)
    plans = [recovery.begin_attempt(run, holder()).entry.plan for _ in range(5)]
    assert plans == [Plan(refs[1], ranks=2)] * 5
    history = [Ended(number, signal=9) for number in range(1, 4)]
    restored = [Ended(number, signal=9, restored=True) for number in range(1, 4)]
    assert decide_restart(0.0, history, Policy(max_restarts=3)).action == "restart"
    assert decide_restart(0.0, [*restored, *history], Policy(max_restarts=3)).action == "restart"


def fenced_is_final(run: RunDir) -> None:
    """Rule 15: a superseded attempt enters nothing, however often it tries."""
    with Launch.begin(run) as old:
        old.train(1)
        commit = old.save()
        old.train(1)
        old.vote(0), old.vote(1)
        with Launch.begin(run):
            before = entries_of(run)
            for _ in range(2):
                for act in (old.commit, lambda: old.keep(commit)):
                    with pytest.raises(Fenced):
                        act()
            assert entries_of(run) == before


CHECKS: list[tuple[int, Callable[[RunDir], None]]] = [
    (1, one_sequence),
    (2, names_are_written_once),
    (3, what_leaves_the_chain_never_returns),
    (4, no_writer_waits_for_another),
    (4, a_cursor_knows_what_it_has_read),
    (5, one_plan),
    (6, the_journal_comes_before_the_vote),
    (6, the_events_lie_beside_the_shard),
    (7, what_is_captured_follows_from_the_step),
    (7, votes_that_never_meet_are_abandoned),
    (8, nothing_is_restored_but_commits),
    (9, retire_before_delete),
    (9, a_retired_shard_is_not_referenced),
    (9, what_is_referenced_stays),
    (10, nothing_goes_before_it_is_replaced),
    (10, two_stay_that_share_no_file),
    (11, any_interleaving_is_one_state),
    (12, just_in_time),
    (13, proof_compares_one_history),
    (14, recovering_again_changes_nothing),
    (15, fenced_is_final),
]


# --- the rules taken out ------------------------------------------------------------------------


def rename_replaces(patch: Patch) -> None:
    patch.setattr(os, "link", lambda source, target, **_: os.rename(source, target))


def without_nonce(patch: Patch) -> None:
    def name(step: int, attempt: int, nonce: str, end: bool = False) -> str:
        return f"step-{step:08d}.a1-0"

    for module in (model, snapshot, votes):
        patch.setattr(module, "snapshot_name", name)


def every_commit_is_a_candidate(patch: Patch) -> None:
    def all_of_them(entries: list[Entry]) -> list[model.CommitEntry]:
        void = model.retired(entries)
        left = [c for c in model.commits(entries) if c.snapshot.manifest not in void]
        return sorted(left, key=lambda c: c.snapshot.step, reverse=True)

    patch.setattr(model, "candidates", all_of_them)


def one_environment_for_all(patch: Patch) -> None:
    """Both ranks write into the environment that rank 0 has opened."""
    opened: list[Any] = []
    real = Journal.create.__func__  # type: ignore[attr-defined]

    def create(cls: type[Journal], path: Path, **options: Any) -> Journal:
        journal: Journal = real(cls, path, **options)
        opened.append(journal)
        journal._environment.handle = opened[0]._environment.handle
        return journal

    patch.setattr(Journal, "create", classmethod(create))
    # Waiting is what is broken: who would wait is told instead.
    real_sync = Journal.sync
    patch.setattr(Journal, "sync", lambda self, *_, **__: real_sync(self, timeout=0.2))


def a_cursor_of_numbers(patch: Patch) -> None:
    patch.setattr(Reader, "cursor_at", lambda self, lsn: _Anything())


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def nothing_is_tried_again(patch: Patch) -> None:
    patch.setattr(model, "retried", lambda entries: [])


def the_vote_does_not_wait(patch: Patch) -> None:
    patch.setattr(Journal, "sync", lambda self, *_: Cursor(1, bytes(16)))
    patch.setattr(Journal, "envelopes", lambda self, after, upto: [])


def own_clocks(patch: Patch) -> None:
    ticks = itertools.count()
    patch.setattr(pace, "is_due", lambda step, paces: next(ticks) % 3 == 0)


def late_votes_count(patch: Patch) -> None:
    def decide_anyway(found: list[Entry]) -> list[model.CommitEntry]:
        return []

    patch.setattr(snapshot.model, "commits", decide_anyway)


def a_plan_names_what_was_voted(patch: Patch) -> None:
    """As if an arena that nobody committed could be restored."""

    def choose(run: RunDir, entries: list[Entry], **_: object) -> recovery.Verdict:
        for path in run.snapshots.iterdir():
            return recovery.Verdict(SnapshotRef(1, 1, path.name.rpartition("-")[2], "?"), ())
        return recovery.Verdict(None, ())

    patch.setattr(recovery, "choose", choose)


def delete_before_retire(patch: Patch) -> None:
    real = snapshot.retire

    def retire(run: RunDir, **options: Any) -> tuple[SnapshotRef, ...]:
        chosen = model.retirable(
            Sequence(run.sequence).read(), options["verified"], options["keep"]
        )
        for ref in chosen:
            failpoints.failpoint("snapshot.deleting")
            shutil.rmtree(run.snapshots / ref.name)
        return real(run, **options)

    patch.setattr(snapshot, "retire", retire)


def references_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(snapshot, "_refuse_dead", lambda *_: None)


def deletes_whole_folders(patch: Patch) -> None:
    patch.setattr(snapshot, "_alive_files", lambda *_: set())


def counts_any_two(patch: Patch) -> None:
    real = model.retirable
    patch.setattr(model, "retirable", lambda *given: real(*given[:3]))


def the_newest_few_of_all(patch: Patch) -> None:
    def newest_few(
        entries: list[Entry], verified: frozenset[str], keep: int, *_: object
    ) -> tuple[SnapshotRef, ...]:
        void = model.retired(entries)
        left = [c.snapshot for c in model.commits(entries) if c.snapshot.manifest not in void]
        return tuple(sorted(left, key=lambda ref: ref.step, reverse=True)[keep:])

    patch.setattr(model, "retirable", newest_few)


def one_record_for_all(patch: Patch) -> None:
    real = state.fold

    def fold(entries: Iterable[Entry], streams: Any, start: Any = None) -> state.RunState:
        (first, *_) = streams
        return real(tuple(entries), {first: [pair for of in streams.values() for pair in of]})

    patch.setattr(state, "fold", fold)


def votes_always_agree(patch: Patch) -> None:
    patch.setattr(votes, "disagreement", lambda parts: None)
    patch.setattr(snapshot, "_misplaced", lambda parts: None)


def every_attempt_is_history(patch: Patch) -> None:
    def everything(entries: list[Entry]) -> list[model.Link]:
        return [model.Link(e.number, e.nonce, 0, None) for e in reversed(model.attempts(entries))]

    patch.setattr(model, "chain", everything)


def by_the_attempts_number(patch: Patch) -> None:
    """Each attempt goes back one further, for safety."""
    real = recovery.choose

    def choose(run: RunDir, entries: list[Entry], **_: object) -> recovery.Verdict:
        live = model.candidates(entries)
        back = min(len(model.attempts(entries)) // 3, len(live) - 1) if live else 0
        return real(run, entries, at=live[back].snapshot.step if live else None)

    patch.setattr(recovery, "choose", choose)


def never_fenced(patch: Patch) -> None:
    patch.setattr(snapshot, "require_newest", lambda *_: None)


BROKEN: list[tuple[Callable[[Patch], None], Callable[[RunDir], None]]] = [
    (rename_replaces, one_sequence),
    (without_nonce, names_are_written_once),
    (every_commit_is_a_candidate, what_leaves_the_chain_never_returns),
    (one_environment_for_all, no_writer_waits_for_another),
    (a_cursor_of_numbers, a_cursor_knows_what_it_has_read),
    (nothing_is_tried_again, one_plan),
    (the_vote_does_not_wait, the_journal_comes_before_the_vote),
    (the_vote_does_not_wait, the_events_lie_beside_the_shard),
    (own_clocks, what_is_captured_follows_from_the_step),
    (late_votes_count, votes_that_never_meet_are_abandoned),
    (a_plan_names_what_was_voted, nothing_is_restored_but_commits),
    (delete_before_retire, retire_before_delete),
    (references_are_not_looked_at, a_retired_shard_is_not_referenced),
    (deletes_whole_folders, what_is_referenced_stays),
    (counts_any_two, two_stay_that_share_no_file),
    (the_newest_few_of_all, nothing_goes_before_it_is_replaced),
    (one_record_for_all, any_interleaving_is_one_state),
    (votes_always_agree, just_in_time),
    (every_attempt_is_history, proof_compares_one_history),
    (by_the_attempts_number, recovering_again_changes_nothing),
    (never_fenced, fenced_is_final),
]


@pytest.mark.parametrize("rule, check", CHECKS, ids=lambda x: getattr(x, "__name__", f"rule_{x}"))
def test_rule(run: RunDir, rule: int, check: Callable[[RunDir], None]) -> None:
    check(run)


@pytest.mark.parametrize("broken, check", BROKEN, ids=lambda x: x.__name__)
def test_a_rule_left_out_is_noticed(
    run: RunDir, broken: Callable[[Patch], None], check: Callable[[RunDir], None]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        with pytest.raises(NOTICED):
            check(run)


NOTICED = (AssertionError, WalrecoverError, OSError, KeyError, IndexError, lmdb.Error,
           pytest.fail.Exception)  # fmt: skip


def test_every_rule_is_here() -> None:
    assert {rule for rule, _ in CHECKS} == set(range(1, 16))
    assert {check for _, check in BROKEN} == {check for _, check in CHECKS}
