"""The fold, event by event, and what is read from a folded run."""

from __future__ import annotations

import pytest

from tests.support.protocol import attempt, committed, nonce_of, reference
from walrecover import events as ev
from walrecover.entries import Plan
from walrecover.state import RunState, StreamKey, StreamRecord, apply, fold


def key(number: int, rank: int = 0) -> StreamKey:
    return StreamKey(number, nonce_of(number), f"rank-{rank}")


def stream(first: int, last: int) -> list[tuple[int, ev.Event]]:
    """A stream that completes these steps."""
    found: list[tuple[int, ev.Event]] = [(1, ev.Resumed(step=first - 1))]
    return found + [
        (2 + place, ev.StepCompleted(step=step))
        for place, step in enumerate(range(first, last + 1))
    ]


def steps_of(*steps: int) -> list[list[int]]:
    record = StreamRecord()
    for step in steps:
        apply(record, ev.StepCompleted(step=step))
    return record.steps


@pytest.mark.parametrize(
    "steps, spans",
    [
        ((1, 2, 3), [[1, 3]]),
        ((5, 6, 9), [[5, 6], [9, 9]]),
        ((1, 2, 2, 3), [[1, 3]]),
        ((1, 2, 3, 1, 2), [[1, 3]]),  # keyed by step: said again, it changes nothing
        ((5, 6, 1, 7), [[1, 1], [5, 7]]),
    ],
)
def test_steps_are_kept_as_intervals(steps: tuple[int, ...], spans: list[list[int]]) -> None:
    assert steps_of(*steps) == spans


def test_the_last_step_is_the_highest() -> None:
    record = StreamRecord()
    assert record.last_step == 0
    for step in (4, 5, 6, 2):
        apply(record, ev.StepCompleted(step=step))
    assert record.last_step == 6


SINGLE: list[tuple[ev.Event, str]] = [
    (ev.AttemptBegun(run="r", attempt=1, nonce="0", writer="rank-0"), "begun"),
    (ev.Resumed(step=4), "resumed"),
    (ev.RecoveryPlanned(plan=Plan()), "planned"),
    (ev.RunStopped(step=4), "stopped"),
    (ev.RunFinished(step=4), "finished"),
]
SEVERAL: list[tuple[ev.Event, str]] = [
    (ev.WorkerExited(pid=1), "exited"),
    (ev.RestartDecided(action="restart", delay=0.0, reason=""), "decided"),
    (ev.SnapshotAbandoned(step=4, reason=""), "abandoned"),
]


@pytest.mark.parametrize("event, field", SINGLE, ids=lambda item: str(item).partition("(")[0])
def test_the_newest_is_kept(event: ev.Event, field: str) -> None:
    record = apply(apply(StreamRecord(), event), event)
    assert getattr(record, field) is event
    assert record.events == 2


@pytest.mark.parametrize("event, field", SEVERAL, ids=lambda item: str(item).partition("(")[0])
def test_all_are_kept(event: ev.Event, field: str) -> None:
    record = apply(apply(StreamRecord(), event), event)
    assert getattr(record, field) == [event, event]


def test_digests_and_names_are_kept_as_sets() -> None:
    record = apply(StreamRecord(), ev.SnapshotVerified(step=4, manifest="m"))
    apply(record, ev.SnapshotsRetired(names=("a", "b")))
    assert (record.verified, record.retired) == ({"m"}, {"a", "b"})


@pytest.mark.parametrize("event, _", [*SINGLE, *SEVERAL])
def test_no_other_event_moves_the_steps(event: ev.Event, _: str) -> None:
    record = apply(apply(StreamRecord(), ev.StepCompleted(step=1)), event)
    assert record.steps == [[1, 1]]


def test_an_unknown_event_counts_and_changes_nothing() -> None:
    record = apply(StreamRecord(), ev.Unknown("LaterInvented", {"step": 7}))
    assert record == StreamRecord(events=1)


def test_an_event_seen_before_is_skipped() -> None:
    once = fold((), {key(1): stream(1, 5)})
    again = fold((), {key(1): [*stream(1, 5), *stream(1, 5)]})
    assert once == again


# --- a folded run -------------------------------------------------------------------------------

ENTRIES = (
    attempt(1),
    committed(4, 1),
    attempt(2, reference(4, 1)),
    attempt(3, reference(4, 1)),
)


def folded() -> RunState:
    """Attempt 1 came to step 7, attempt 2 to 6, attempt 3 to 5; the chain is 3, 1."""
    streams = {
        key(1, 0): stream(1, 7),
        key(1, 1): stream(1, 6),
        key(2, 0): stream(5, 6),
        key(2, 1): stream(5, 5),
        key(3, 0): stream(5, 5),
    }
    return fold(ENTRIES, streams)


def test_how_far_an_attempt_came() -> None:
    state = folded()
    assert [state.completed(n, nonce_of(n)) for n in (1, 2, 3, 4)] == [7, 6, 5, 0]


def test_the_last_step_is_the_newest_attempts_that_made_any() -> None:
    assert folded().last_step() == 5
    entries = (*ENTRIES, attempt(4, reference(4, 1)))
    assert folded()._replace(entries=entries).last_step() == 5
    assert fold((), {}).last_step() == 0


def test_what_survives_is_counted_along_the_chain_up_to_its_cuts() -> None:
    assert [(link.attempt, last) for link, last in folded().surviving()] == [(1, 4), (3, 5)]


def test_superseded_steps_stay_visible() -> None:
    assert folded().superseded() == {
        "a1-00000001": [(5, 6), (5, 7)],
        "a2-00000002": [(5, 5), (5, 6)],
    }


def test_the_steps_of_an_undisturbed_run_all_survive() -> None:
    state = fold((attempt(1),), {key(1): stream(1, 9)})
    assert state.superseded() == {}
    assert [(link.attempt, last) for link, last in state.surviving()] == [(1, 9)]


def test_every_survivor_satisfies_rule_11() -> None:
    state = folded()
    counted = {
        (link.attempt, step)
        for link, last in state.surviving()
        for step in range(link.base + 1, last + 1)
    }
    assert counted == {(1, 1), (1, 2), (1, 3), (1, 4), (3, 5)}
    assert {(link.attempt, s) for link in state.chain for s in range(9) if link.holds(s)} >= counted
