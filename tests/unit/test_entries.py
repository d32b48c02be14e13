"""The sequence's entries: their bytes, and what a list of them says."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.support.protocol import attempt, committed, reference, retirement
from walrecover import entries as model
from walrecover.entries import (
    Ancestor,
    AttemptEntry,
    CommitEntry,
    Entry,
    Plan,
    Rejected,
    Rewind,
    Skip,
    SnapshotRef,
)
from walrecover.errors import Corrupt, UnsupportedVersion


def steps(commits: list[CommitEntry]) -> list[tuple[int, int]]:
    return [(commit.snapshot.step, commit.snapshot.attempt) for commit in commits]


REJECTED = Rejected(9, 1, "blake3:9.1.False", "a shard is missing")
ENTRIES: list[Entry] = [
    attempt(1),
    attempt(2, reference(8, 1), rejected=(REJECTED,)),
    committed(12, 2, end=True, finished=True),
    retirement(2, reference(8, 1), reference(4, 1)),
]
ORIGIN = model.OriginEntry(
    id="0f",
    at=0.0,
    parent="a-run",
    snapshot=reference(8, 2),
    history=(Ancestor("a-run", 2, "00000002", 4, 8), Ancestor("a-run", 1, "00000001", 0, 4)),
    skips=(Skip(0, 1, 64, 128, "bad batches"),),
)


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    assert model.decode(model.encode(entry), 7) == entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_an_entry_is_json_that_people_can_read(entry: Entry) -> None:
    read = json.loads(model.encode(entry))
    assert read["format"] == model.FORMAT
    assert read["body"] == json.loads(msgspec.json.encode(entry))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_no_flipped_bit_of_an_entry_passes(entry: Entry) -> None:
    """Without the digest, a flip in a field's name would silently be its default."""
    data = model.encode(entry)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert model.decode(bytes(flipped), 7) == entry
        except (Corrupt, UnsupportedVersion) as error:
            assert str(error).startswith("sequence entry 7: ")


def test_a_lost_base_would_be_a_fresh_start_if_the_digest_were_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = model.encode(attempt(2, reference(8, 1))).replace(b'"base"', b'"bbse"')
    with pytest.raises(Corrupt, match="not the ones that were written"):
        model.decode(data, 7)
    digest = json.loads(data)["digest"]
    monkeypatch.setattr(model, "digest_of", lambda _: digest)
    broken = model.decode(data, 7)
    assert isinstance(broken, AttemptEntry) and broken.plan.base is None


@pytest.mark.parametrize("cut", [0, 1, 40, 120])
def test_a_cut_entry_is_corrupt(cut: int) -> None:
    with pytest.raises(Corrupt, match="sequence entry 3: "):
        model.decode(model.encode(attempt(1))[:cut], 3)


def test_a_newer_format_is_not_damage() -> None:
    data = b'{"format": 2, "digest": "sha3:0", "body": [], "more": {}}'
    with pytest.raises(UnsupportedVersion, match="sequence entry 3: format 2, and this release"):
        model.decode(data, 3)


def test_nothing_is_read_deeper_than_the_reader_can() -> None:
    data = b'{"format": 1, "digest": "", "body": ' + b"[" * 500_000
    with pytest.raises(Corrupt):
        model.decode(data, 3)


@pytest.mark.parametrize("nonce", ["", "..", "../../etc", "a/b", "A", "0" * 33, "٣", "a\0"])
def test_a_nonce_leads_nowhere_else(nonce: str) -> None:
    for entry in (
        attempt(1, nonce=nonce),
        attempt(1, SnapshotRef(1, 1, nonce, "m")),
        CommitEntry(id="", at=0, snapshot=SnapshotRef(1, 1, nonce, "m")),
    ):
        with pytest.raises(Corrupt, match="is no name"):
            model.decode(model.encode(entry), 3)


@pytest.mark.parametrize("step, number", [(-1, 1), (1, 0), (1, 1 << 32), (1 << 60, 1)])
def test_numbers_stay_in_their_bounds(step: int, number: int) -> None:
    entry = CommitEntry(id="", at=0, snapshot=SnapshotRef(step, number, "0", "m"))
    with pytest.raises(Corrupt, match="is no name"):
        model.decode(model.encode(entry), 3)


def test_names() -> None:
    assert model.snapshot_name(1200, 3, "9f2c01d7") == "step-00001200.a3-9f2c01d7"
    assert reference(1200, 3, end=True).name == "step-00001200-end.a3-00000003"
    assert attempt(3).label == "a3-00000003"


# --- the chain ----------------------------------------------------------------------------------


def test_the_chain_goes_from_base_to_base() -> None:
    found = [
        attempt(1),
        committed(4, 1),
        attempt(2, reference(4, 1)),
        committed(6, 2),
        attempt(3, reference(6, 2)),
    ]
    assert [(link.attempt, link.base, link.cut) for link in model.chain(found)] == [
        (3, 6, None),
        (2, 4, 6),
        (1, 0, 4),
    ]


def test_a_link_holds_what_lies_above_its_base_and_not_above_its_cut() -> None:
    link = model.Link(2, "0", base=4, cut=6)
    assert [step for step in range(10) if link.holds(step)] == [5, 6]


def test_an_attempt_that_is_passed_over_is_off_the_chain() -> None:
    found = [
        attempt(1),
        committed(4, 1),
        attempt(2, reference(4, 1)),
        committed(6, 2),
        attempt(3, reference(4, 1)),
    ]
    assert [link.attempt for link in model.chain(found)] == [3, 1]
    assert steps(model.candidates(found)) == [(4, 1)]


def test_no_attempts_no_chain() -> None:
    assert model.chain([]) == [] and model.candidates([]) == [] and not model.finished([])
    assert model.newest_attempt([]) is None and model.retried([]) == []


def test_a_chain_of_plans_in_a_circle_ends() -> None:
    found = [attempt(1, reference(4, 2)), attempt(2, reference(4, 1))]
    assert len(model.chain(found)) <= 3


# --- candidates ---------------------------------------------------------------------------------


def test_candidates_are_newest_first_along_the_chain() -> None:
    found = [
        attempt(1),
        committed(2, 1),
        committed(4, 1),
        committed(4, 1, end=True),
        attempt(2, reference(4, 1)),
        committed(5, 2),
        committed(9, 2),
    ]
    assert steps(model.candidates(found)) == [(9, 2), (5, 2), (4, 1), (2, 1)]


def test_what_a_rewind_left_never_returns() -> None:
    found = [
        attempt(1),
        committed(2, 1),
        committed(8, 1),
        attempt(2, reference(2, 1)),
        attempt(3, reference(2, 1)),
    ]
    assert steps(model.candidates(found)) == [(2, 1)]


def test_an_end_capture_lies_above_its_step() -> None:
    found = [attempt(1), committed(4, 1), committed(4, 1, end=True)]
    assert [c.snapshot.end for c in model.candidates(found)] == [True, False]
    kept = [*found, attempt(2, reference(4, 1, end=True))]
    assert [c.snapshot.end for c in model.candidates(kept)] == [True, False]
    left = [*found, attempt(2, reference(4, 1))]
    assert [c.snapshot.end for c in model.candidates(left)] == [False]


def test_a_commit_counts_only_while_its_attempt_is_the_newest() -> None:
    found = [attempt(1), committed(2, 1), attempt(2, reference(2, 1)), committed(4, 1)]
    assert steps(model.commits(found)) == [(2, 1)]
    assert steps(model.candidates(found)) == [(2, 1)]


def test_an_attempt_of_the_same_number_and_another_nonce_is_another() -> None:
    found = [attempt(1), attempt(1, nonce="other"), committed(2, 1)]
    assert model.commits(found) == []


def test_a_retired_snapshot_is_void_at_once() -> None:
    found = [attempt(1), committed(2, 1), committed(4, 1), retirement(1, reference(4, 1))]
    assert steps(model.candidates(found)) == [(2, 1)]


def test_a_fresh_start_leaves_everything() -> None:
    found = [attempt(1), committed(2, 1), attempt(2, fresh=True)]
    assert model.candidates(found) == []


def test_finished_is_what_the_newest_live_commit_says() -> None:
    found: list[Entry] = [attempt(1), committed(2, 1), committed(3, 1, end=True, finished=True)]
    assert model.finished(found)
    assert not model.finished(found[:2])
    assert not model.finished([*found, attempt(2, reference(2, 1))])
    assert model.finished([*found, attempt(2, reference(3, 1, end=True))])


# --- what could only not be read ----------------------------------------------------------------


UNREAD = Rejected(8, 1, reference(8, 1).manifest, "Input/output error", confirmed=False)
DAMAGED = Rejected(6, 1, reference(6, 1).manifest, "its bytes are not the ones", confirmed=True)
PASSED_OVER: list[Entry] = [
    attempt(1),
    committed(4, 1),
    committed(6, 1),
    committed(8, 1),
    attempt(2, reference(4, 1), rejected=(UNREAD, DAMAGED)),
]


def test_what_could_only_not_be_read_is_tried_again() -> None:
    assert steps(model.retried(PASSED_OVER)) == [(8, 1)]
    again = [*PASSED_OVER, attempt(3, reference(4, 1), rejected=(UNREAD,))]
    assert steps(model.retried(again)) == [(8, 1)]


def test_what_was_committed_since_ends_the_retries() -> None:
    assert model.retried([*PASSED_OVER, committed(5, 2)]) == []


def test_nothing_retired_and_nothing_that_never_counted_is_tried_again() -> None:
    assert model.retried([*PASSED_OVER, retirement(2, reference(8, 1))]) == []
    late = [*PASSED_OVER[:3], attempt(2, reference(4, 1), rejected=(UNREAD,)), committed(8, 1)]
    assert model.retried(late) == []


def test_what_is_tried_again_is_no_candidate_until_a_plan_says_so() -> None:
    assert steps(model.candidates(PASSED_OVER)) == [(4, 1)]
    healed = [*PASSED_OVER, attempt(3, reference(8, 1))]
    assert steps(model.candidates(healed)) == [(8, 1), (6, 1), (4, 1)]


# --- retention ----------------------------------------------------------------------------------


def names(found: list[Entry], verified: set[int], keep: int) -> set[tuple[int, int]]:
    proven = {
        commit.snapshot.manifest
        for commit in model.commits(found)
        if commit.snapshot.step in verified
    }
    chosen = model.retirable(found, frozenset(proven), keep)
    return {(ref.step, ref.attempt) for ref in chosen}


FOUR: list[Entry] = [attempt(1), *(committed(step, 1) for step in (1, 2, 3, 4))]


@pytest.mark.parametrize(
    "verified, keep, gone",
    [
        ({1, 2, 3, 4}, 2, {(1, 1), (2, 1)}),
        ({1, 2, 3, 4}, 3, {(1, 1)}),
        ({1, 2, 3, 4}, 1, {(1, 1), (2, 1)}),  # two verified ones stay, whatever is asked
        ({1, 2, 3, 4}, 9, set()),
        ({4}, 2, set()),  # one alone is not enough to delete for
        ({3, 4}, 2, {(1, 1), (2, 1)}),
        ({2, 3}, 2, {(1, 1)}),
        ({1, 2}, 2, set()),
        (set(), 2, set()),
    ],
)
def test_nothing_goes_before_two_newer_ones_are_verified(
    verified: set[int], keep: int, gone: set[tuple[int, int]]
) -> None:
    assert names(FOUR, verified, keep) == gone


def test_the_base_stays_until_its_attempt_has_a_verified_commit() -> None:
    found = [*FOUR, attempt(2, reference(1, 1)), committed(2, 2), committed(3, 2)]
    assert names(found, {1, 4}, 2) == set()
    assert (1, 1) not in names([*found, committed(4, 2)], set(), 1)
    assert (1, 1) in names([*found, committed(4, 2)], {3, 4}, 2)


def test_what_left_the_chain_goes_once_the_chain_stands_by_itself() -> None:
    found = [*FOUR, attempt(2, reference(1, 1)), committed(5, 2), committed(6, 2)]
    assert names(found, {2, 3, 4}, 2) == set()
    assert names(found, {5, 6}, 2) == {(1, 1), (2, 1), (3, 1), (4, 1)}


def test_nothing_is_retired_twice() -> None:
    found = [*FOUR, retirement(1, reference(1, 1))]
    assert names(found, {1, 2, 3, 4}, 2) == {(2, 1)}


def test_nothing_to_retire_without_attempts() -> None:
    assert model.retirable([], frozenset(), 2) == ()
    assert model.retirable([attempt(1)], frozenset(), 2) == ()


# --- forks --------------------------------------------------------------------------------------


def test_an_origin_comes_back_as_it_was_and_is_only_ever_the_first() -> None:
    assert model.decode(model.encode(ORIGIN), 1) == ORIGIN
    with pytest.raises(Corrupt, match="sequence entry 2: an origin, which only the first can be"):
        model.decode(model.encode(ORIGIN), 2)


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a\0"])
def test_a_parent_leads_nowhere_else(name: str) -> None:
    replace = msgspec.structs.replace
    ancestor = replace(ORIGIN.history[0], run=name)
    for entry in (replace(ORIGIN, parent=name), replace(ORIGIN, history=(ancestor,))):
        with pytest.raises(Corrupt, match="is not a run's name"):
            model.decode(model.encode(entry), 1)
    nonce = replace(ORIGIN.history[0], nonce="../x")
    with pytest.raises(Corrupt, match="is no name"):
        model.decode(model.encode(replace(ORIGIN, history=(nonce,))), 1)


def test_the_snapshot_of_an_origin_is_a_candidate_until_the_chain_leaves_it() -> None:
    assert steps(model.candidates([ORIGIN])) == [(8, 2)]
    going_on: list[Entry] = [ORIGIN, attempt(3, reference(8, 2)), committed(12, 3)]
    assert steps(model.candidates(going_on)) == [(12, 3), (8, 2)]
    again = [*going_on, attempt(4, reference(8, 2))]
    assert steps(model.candidates(again)) == [(8, 2)]
    assert steps(model.candidates([*going_on, attempt(4)])) == []  # it has started over
    void = [*going_on, retirement(3, reference(8, 2))]
    assert steps(model.candidates(void)) == [(12, 3)]


def test_a_fork_of_a_finished_run_is_finished_until_it_trains() -> None:
    done = msgspec.structs.replace(ORIGIN, finished=True)
    assert model.finished([done]) and not model.finished([ORIGIN])
    assert not model.finished([done, attempt(3, reference(8, 2)), committed(12, 3)])


def test_what_is_skipped_is_inherited_until_a_run_starts_over() -> None:
    assert model.skips([]) == model.skips([attempt(1)]) == ()
    assert model.skips([ORIGIN]) == ORIGIN.skips
    more = (*ORIGIN.skips, Skip(0, 2, 0, 64))
    plan = Plan(reference(8, 2), skips=more, rewind=Rewind(9, "the loss is nan"))
    second = msgspec.structs.replace(attempt(3), plan=plan)
    assert model.skips([ORIGIN, second]) == more
    assert model.decode(model.encode(second), 2) == second
    assert model.skips([ORIGIN, second, attempt(4)]) == ()
