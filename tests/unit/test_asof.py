"""What was known when a step was completed."""

from __future__ import annotations

import pytest

from tests.support.protocol import attempt, committed, reference, retirement
from walrecover import events as ev
from walrecover.asof import as_of
from walrecover.entries import Entry, OriginEntry
from walrecover.errors import BadInput
from walrecover.state import RunState, StreamKey, StreamRecord

ENTRIES: tuple[Entry, ...] = (
    attempt(1),
    committed(4, 1),
    committed(6, 1),
    retirement(1, reference(2, 1)),
    attempt(2, reference(4, 1)),  # it went back to before 6
    committed(8, 2),
    committed(12, 2, end=True, finished=True),
)


def record(first: int, last: int, **more: object) -> StreamRecord:
    return StreamRecord(events=1, steps=[[first, last]], **more)  # type: ignore[arg-type]


STATE = RunState(
    ENTRIES,
    {
        StreamKey(1, "00000001", "rank-0"): record(1, 7),
        StreamKey(1, "00000001", "supervisor"): StreamRecord(
            exited=[ev.WorkerExited(pid=1, cause="numeric")],
            decided=[ev.RestartDecided(action="rewind", delay=0.0, reason="")],
        ),
        StreamKey(2, "00000002", "rank-0"): record(5, 12, finished=ev.RunFinished(step=12)),
    },
)


def known(step: int) -> tuple[int, int, list[int], bool]:
    state = as_of(STATE, step, "a")
    attempts = len({key.attempt for key in state.records})
    return attempts, state.last_step(), [c.snapshot.step for c in state.candidates], state.finished


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, (1, 0, [], False)),
        (3, (1, 3, [], False)),
        (4, (1, 4, [4], False)),
        (5, (2, 5, [4], False)),  # the fifth step that counts is the second attempt's
        (8, (2, 8, [8, 4], False)),
        (11, (2, 11, [8, 4], False)),
        (12, (2, 12, [12, 8, 4], True)),
        (99, (2, 12, [12, 8, 4], True)),
    ],
)
def test_a_step_knows_what_came_before_it(
    step: int, expected: tuple[int, int, list[int], bool]
) -> None:
    assert known(step) == expected


def test_how_an_attempt_ended_is_not_known_before_it_does() -> None:
    supervisor = StreamKey(1, "00000001", "supervisor")
    assert as_of(STATE, 3, "a").records[supervisor].exited == []
    assert as_of(STATE, 5, "a").records[supervisor].decided[0].action == "rewind"
    assert STATE.records[supervisor].exited, "the state itself is not changed"


def test_a_step_of_the_parent_is_not_the_fork_s_to_tell() -> None:
    origin = OriginEntry("0f", 0.0, "b", reference(6, 1))
    key = StreamKey(2, "00000002", "rank-0")
    fork = RunState((origin, attempt(2, reference(6, 1))), {key: record(7, 9)})
    assert as_of(fork, 7, "a").last_step() == 7
    assert as_of(fork, 6, "a").last_step() == 0
    with pytest.raises(BadInput, match="step 5 was made by run b, from which a was forked at"):
        as_of(fork, 5, "a")
    over = RunState((*fork.entries, attempt(3)), fork.records)  # it started over since
    assert as_of(over, 5, "a").entries == over.entries
