"""Verdicts on resumes from streams alone: what is compared with what, and which is the worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import structs

from walrecover import events as ev
from walrecover.entries import (
    AttemptEntry,
    CommitEntry,
    Entry,
    Holder,
    Plan,
    Rewind,
    SnapshotRef,
)
from walrecover.overlap import judge
from walrecover.state import StreamKey, fold

CODE = ev.Code(python="3.11.9", threads=1, libraries={"torch": "2.13.0"})
A, B = b"a" * 16, b"b" * 16

Streams = Mapping[tuple[int, int], list[ev.Event]]
"""By attempt and rank."""


def completed(step: int, **changes: Any) -> ev.StepCompleted:
    given: dict[str, Any] = {
        "step": step,
        "position": (step,),
        "lr": (0.5,),
        "rng": {"torch": step.to_bytes(16, "big")},
        "scalars": {"loss": 1.0 / step},
        "batch": step.to_bytes(16, "little"),
    }
    return ev.StepCompleted(**{**given, **changes})


def steps(first: int, last: int, **changes: Any) -> list[ev.Event]:
    return [completed(step, **changes) for step in range(first, last + 1)]


def snapshot(step: int, attempt: int) -> SnapshotRef:
    return SnapshotRef(step, attempt, f"n{attempt}", f"m{step}")


def attempt(number: int, base: SnapshotRef | None = None, **plan: Any) -> AttemptEntry:
    holder = Holder("host", "boot", 1, 1.0)
    return AttemptEntry("id", 0.0, number, f"n{number}", Plan(base, **plan), holder)


def commit(step: int, by: int) -> CommitEntry:
    return CommitEntry("id", 0.0, snapshot(step, by))


def judged(
    entries: list[Entry], streams: Streams, worlds: Mapping[int, int] = {}
) -> dict[tuple[int, int], ev.Event]:
    """The verdicts by attempt and rank. `worlds`: how many ranks an attempt had."""
    held = {
        StreamKey(number, f"n{number}", f"rank-{rank}"): [
            ev.AttemptBegun(
                run="r",
                attempt=number,
                nonce=f"n{number}",
                writer=f"rank-{rank}",
                rank=rank,
                world=worlds.get(number, 3),
                code=structs.replace(CODE, world=worlds.get(number, CODE.world)),
            ),
            *events,
        ]
        for (number, rank), events in streams.items()
    }
    state = fold(entries, {key: enumerate(events, 1) for key, events in held.items()})

    def read(key: StreamKey, first: int, last: int) -> Iterable[Any]:
        return held[key]

    return {(one.attempt, one.rank): one.verdict for one in judge(state, read)}


RESUMED = [attempt(1), commit(10, 1), attempt(2, snapshot(10, 1))]


def test_steps_done_twice_alike_are_verified_exactly_so_far_as_both_came() -> None:
    found = judged(RESUMED, {(1, 0): steps(1, 15), (2, 0): steps(11, 20)})
    verdict = found[2, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert (verdict.base, verdict.from_step, verdict.to_step, verdict.tier) == (10, 11, 15, "exact")
    assert list(found) == [(2, 0)]


def test_the_first_step_that_differs_is_named_with_both_values() -> None:
    again = [*steps(11, 12), *steps(13, 20, lr=(0.25,))]
    verdict = judged(RESUMED, {(1, 0): steps(1, 15), (2, 0): again})[2, 0]
    assert verdict == ev.ResumeDiverged(
        step=13, what="the learning rate", before="0.5", after="0.25", attempt=1
    )


def test_each_rank_has_its_own_verdict() -> None:
    streams = {
        (1, 0): steps(1, 15),
        (1, 1): steps(1, 15),
        (2, 0): steps(11, 20),
        (2, 1): [completed(11, batch=B), *steps(12, 20)],
    }
    found = judged(RESUMED, streams)
    assert isinstance(found[2, 0], ev.ResumeVerified)
    assert isinstance(found[2, 1], ev.ResumeDiverged)
    assert found[2, 1].what == "the batch"


def test_the_journal_of_a_rank_is_missing_only_where_there_was_such_a_rank() -> None:
    given_back = ev.ResumeVerified(base=10, tier="exact", restored=B)
    streams: Streams = {(1, 0): steps(1, 15), (2, 1): [given_back, *steps(11, 20)]}
    missing = judged(RESUMED, streams, {1: 2})[2, 1]
    assert missing == ev.ResumeUnproven(reason="the journal of attempt 1 is missing")
    assert judged(RESUMED, streams, {1: 1})[2, 1] == given_back


def test_scalars_that_arrived_later_are_compared_too() -> None:
    bare = [completed(step, scalars={}) for step in range(11, 14)]
    late = ev.ScalarsArrived(step=12, scalars={"loss": 7.0})
    other = ev.ScalarsArrived(step=12, scalars={"loss": 8.0})
    first = [*steps(1, 10), *bare, late]
    assert isinstance(
        judged(RESUMED, {(1, 0): first, (2, 0): [*bare, late]})[2, 0], ev.ResumeVerified
    )
    verdict = judged(RESUMED, {(1, 0): first, (2, 0): [*bare, other]})[2, 0]
    assert isinstance(verdict, ev.ResumeDiverged)
    assert (verdict.step, verdict.what, verdict.after) == (12, "loss", "8.0")


def test_the_whole_state_is_compared_where_both_captured_it() -> None:
    def captured(step: int, digest: bytes) -> ev.Event:
        return ev.ShardsWritten(step=step, files=(), state={"model": digest})

    first = [*steps(1, 12), captured(12, A), *steps(13, 15)]
    same = [*steps(11, 12), captured(12, A), *steps(13, 15)]
    verdict = judged(RESUMED, {(1, 0): first, (2, 0): same})[2, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert verdict.states == (12,)
    other = [*steps(11, 12), captured(12, B), *steps(13, 15)]
    verdict = judged(RESUMED, {(1, 0): first, (2, 0): other})[2, 0]
    assert isinstance(verdict, ev.ResumeDiverged)
    assert (verdict.step, verdict.what) == (12, "the state of model")


def test_a_changed_machine_is_tolerant_and_bits_are_not_asked_of_it() -> None:
    code = ev.Code(python="3.11.9", threads=4, libraries={"torch": "2.13.0"})
    begun = ev.AttemptBegun(run="r", attempt=2, nonce="n2", writer="rank-0", code=code)
    near = [completed(step, scalars={"loss": 1.001 / step}) for step in range(11, 16)]
    verdict = judged(RESUMED, {(1, 0): steps(1, 15), (2, 0): [begun, *near]})[2, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert (verdict.tier, verdict.why) == ("tolerant", ("threads was 1, is 4",))
    far = [completed(step, scalars={"loss": 1.1 / step}) for step in range(11, 16)]
    verdict = judged(RESUMED, {(1, 0): steps(1, 15), (2, 0): [begun, *far]})[2, 0]
    assert isinstance(verdict, ev.ResumeDiverged)


# --- of more than two attempts ------------------------------------------------------------------


def test_it_is_compared_with_the_newest_execution_of_each_step() -> None:
    entries = [attempt(1), commit(10, 1), attempt(2, snapshot(10, 1)), attempt(3, snapshot(10, 1))]
    streams = {(1, 0): steps(1, 18), (2, 0): steps(11, 13), (3, 0): steps(11, 20)}
    verdict = judged(entries, streams)[3, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert (verdict.from_step, verdict.to_step) == (11, 18)


def test_nobody_is_told_twice_of_one_divergence() -> None:
    entries = [attempt(1), commit(10, 1), attempt(2, snapshot(10, 1)), attempt(3, snapshot(10, 1))]
    changed = {"lr": (0.25,)}
    streams = {
        (1, 0): steps(1, 18),
        (2, 0): steps(11, 13, **changed),
        (3, 0): steps(11, 20, **changed),
    }
    found = judged(entries, streams)
    assert isinstance(found[2, 0], ev.ResumeDiverged)
    verdict = found[3, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert verdict.to_step == 13  # what attempt 1 did behind it is another history


def test_a_start_from_the_beginning_is_compared_but_never_called_diverged() -> None:
    entries: list[Entry] = [attempt(1), attempt(2)]
    verdict = judged(entries, {(1, 0): steps(1, 5), (2, 0): steps(1, 9)})[2, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert (verdict.base, verdict.from_step, verdict.to_step) == (0, 1, 5)
    verdict = judged(entries, {(1, 0): steps(1, 5), (2, 0): steps(1, 9, batch=B)})[2, 0]
    assert isinstance(verdict, ev.ResumeUnproven)
    assert "began from the beginning again" in verdict.reason
    assert "the batch" in verdict.reason


def test_what_another_number_of_ranks_did_is_no_other_beginning() -> None:
    """A rank's samples are others there, also where a later attempt had as many ranks as now."""
    entries: list[Entry] = [attempt(1), attempt(2), attempt(3)]
    streams = {(1, 0): steps(1, 5, batch=B), (2, 0): steps(1, 1), (3, 0): steps(1, 9)}
    verdict = judged(entries, streams, {1: 3, 2: 2, 3: 2})[3, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert (verdict.tier, verdict.to_step) == ("tolerant", 5)
    assert verdict.why == ("world size was 3 in between, is 2",)


def test_a_start_from_the_beginning_after_no_step_has_nothing_to_prove() -> None:
    entries: list[Entry] = [attempt(1), attempt(2)]
    assert judged(entries, {(1, 0): [], (2, 0): steps(1, 9)}) == {}


def test_a_start_that_was_to_be_anew_has_nothing_to_prove() -> None:
    entries: list[Entry] = [attempt(1), attempt(2, fresh=True)]
    assert judged(entries, {(1, 0): steps(1, 5), (2, 0): steps(1, 9, batch=B)}) == {}


def test_an_attempt_that_goes_back_is_another_history() -> None:
    """It leaves data out, so its steps are not those that it replaces; a resume of it is proven by
    what it did itself."""
    back = Rewind(12, "loss is nan at step 12")
    entries = [attempt(1), commit(10, 1), attempt(2, snapshot(10, 1), rewind=back)]
    streams = {(1, 0): steps(1, 15), (2, 0): [STATE, *steps(11, 15, batch=B)]}
    assert judged(entries, streams)[2, 0] == STATE
    entries.append(attempt(3, snapshot(10, 1)))
    verdict = judged(entries, {**streams, (3, 0): steps(11, 20, batch=B)})[3, 0]
    assert isinstance(verdict, ev.ResumeVerified) and verdict.to_step == 15


# --- what the session has said, and what is missing ---------------------------------------------

STATE = ev.ResumeVerified(base=10, tier="exact", restored=A)


def test_where_nothing_was_done_twice_the_states_digest_stands() -> None:
    streams = {(1, 0): steps(1, 10), (2, 0): [STATE, *steps(11, 20)]}
    assert judged(RESUMED, streams)[2, 0] == STATE
    without = judged(RESUMED, {(1, 0): steps(1, 10), (2, 0): steps(11, 20)})[2, 0]
    assert isinstance(without, ev.ResumeUnproven)


def test_the_journal_says_more_than_a_session_that_was_killed_early() -> None:
    verdict = judged(RESUMED, {(1, 0): steps(1, 15), (2, 0): [STATE, *steps(11, 13)]})[2, 0]
    assert isinstance(verdict, ev.ResumeVerified)
    assert (verdict.to_step, verdict.restored) == (13, A)


def test_a_divergence_that_was_journaled_stands() -> None:
    told = ev.ResumeDiverged(step=10, what="the state of model.weight", before="a", after="b")
    streams = {(1, 0): steps(1, 15), (2, 0): [told, *steps(11, 20)]}
    assert judged(RESUMED, streams)[2, 0] == told


def test_a_stream_that_is_missing_leaves_a_resume_unproven() -> None:
    verdict = judged(RESUMED, {(2, 0): [STATE, *steps(11, 20)]})[2, 0]
    assert verdict == ev.ResumeUnproven(reason="the journal of attempt 1 is missing")
    proven = ev.ResumeVerified(base=10, tier="exact", from_step=11, to_step=15, restored=A)
    assert judged(RESUMED, {(2, 0): [proven, *steps(11, 20)]})[2, 0] == proven


def test_an_attempt_that_made_no_step_has_nothing_to_prove() -> None:
    assert judged(RESUMED, {(1, 0): steps(1, 15), (2, 0): []}) == {}
