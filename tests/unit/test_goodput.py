"""Where a run's time went: told histories, second by second, and any history at all adding up."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.protocol import attempt, holder, nonce_of
from walrecover import events as ev
from walrecover.entries import Entry, Plan
from walrecover.goodput import KINDS, Goodput, split
from walrecover.pace import Rate
from walrecover.state import RunState, StreamKey, fold

Told = list[tuple[float, ev.Event]]


class Story:
    """A run, told event by event: (when, what) by writer, for each attempt."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._streams: dict[StreamKey, list[tuple[int, ev.Event | ev.Unknown]]] = {}

    def attempt(self, by: str = "s", world: int = 1, **told: Told) -> Story:
        """The next attempt, of the supervisor `by`: for each writer what happened when, the
        beginning of its stream first."""
        number = len(self._entries) + 1
        who = msgspec.structs.replace(holder(), supervisor=by)
        self._entries.append(msgspec.structs.replace(attempt(number), holder=who))
        for name, events in told.items():
            writer = name.replace("_", "-")
            first = ev.AttemptBegun(
                run="r", attempt=number, nonce=nonce_of(number), writer=writer, world=world
            )
            moments = [(events[0][0], first), *events[1:]]
            self._streams[StreamKey(number, nonce_of(number), writer)] = [
                (lsn, msgspec.structs.replace(event, at=1e9 + at))
                for lsn, (at, event) in enumerate(moments, 1)
            ]
        return self

    @property
    def state(self) -> RunState:
        return fold(self._entries, self._streams)

    def split(self, now: float | None = None) -> Goodput:
        found = split(self.state, None if now is None else 1e9 + now)
        assert found is not None
        assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-9, abs=1e-5)
        by_attempt = [sum(parts.values()) for parts in found.attempts.values()]
        assert sum(by_attempt) == pytest.approx(found.wall, rel=1e-9, abs=1e-5)
        return found


BEGUN = ev.AttemptBegun(run="", attempt=1, nonce="0", writer="")


def planned(seconds: float = 0.0) -> ev.Event:
    return ev.RecoveryPlanned(plan=Plan(), seconds=seconds)


def trains(begun: float, restored: float, first: int, *completed: float) -> Told:
    """A rank that attaches, has restored, and completes steps at these times."""
    told: Told = [(begun, BEGUN), (restored, ev.Resumed(step=first - 1))]
    return told + [(at, ev.StepCompleted(step=step)) for step, at in enumerate(completed, first)]


def died(at: float, seen: float | None = None, cause: str = "crash") -> tuple[float, ev.Event]:
    seen_at = 1e9 + (at if seen is None else seen)
    return at, ev.WorkerExited(pid=1, signal=9, cause=cause, seen=seen_at)


def decided(at: float, delay: float = 0.0, action: str = "restart") -> tuple[float, ev.Event]:
    return at, ev.RestartDecided(action=action, delay=delay, reason="")


def told(found: Goodput, digits: int = 3) -> dict[str, float]:
    """The kinds of which there was some."""
    rounded = {kind: round(part, digits) for kind, part in found.seconds.items()}
    return {kind: part for kind, part in rounded.items() if part}


def killed_once() -> Story:
    """Steps 1 to 4 of 2 s each, a capture behind the second, SIGKILL in the fifth; then from 2."""
    story = Story().attempt(
        supervisor=[(0, BEGUN), (0, planned()), died(21.5, seen=21), decided(22, delay=3)],
        rank_0=[
            *trains(5, 8, 1, 10, 12),
            (13, ev.LoopStalled(step=2, seconds=1.0)),
            (15, ev.StepCompleted(step=3)),
            (17, ev.StepCompleted(step=4)),
        ],
    )
    return story.attempt(
        supervisor=[(27, BEGUN), (27, planned(1)), died(58, cause="done"), decided(59, 0, "stop")],
        rank_0=[
            *trains(30, 32, 3),
            (33, ev.PlaceReached(step=2)),
            *[(35 + 2 * n, ev.StepCompleted(step=3 + n)) for n in range(4)],
            (42, ev.LoopStalled(step=6, seconds=1.0, end=True)),
            (45, ev.LoopStalled(step=6, seconds=3.0, end=True, commit=True)),
            (45, ev.RunFinished(step=6)),
        ],
    )


def test_a_kill_second_by_second() -> None:
    found = killed_once().split()
    assert found.wall == 59
    assert told(found) == {
        "productive": 4 * 2 + 2 * 2,  # steps 1 to 4, then 5 and 6
        "reexecuted": 4 + 2 * 2,  # what the kill cut short at 21, then steps 3 and 4 again
        "capture_stall": 1 + 4,
        "detection": 1,  # seen at 21, decided at 22
        "restart": 5 + 2 + 3,  # the first start; from the end of the pause; to the second attach
        "restore": 3 + 3,  # until the place in the loops is reached
        "idle": 3 + 14,  # the pause, and what came after the end
    }
    assert found.share == pytest.approx(12 / 59)


def test_what_it_cost_and_how_often_it_failed() -> None:
    found = killed_once().split()
    assert found.cost == 1.0  # the waits for a commit do not count
    assert found.rate == Rate(1, pytest.approx(12 + 8 + 5))


def test_a_rate_is_known_while_the_run_lives() -> None:
    story = Story().attempt(supervisor=[(0, BEGUN), (1, planned())], rank_0=trains(2, 3, 1, 5, 7))
    assert story.split(now=8).rate.failures == 0
    assert story.split().rate.failures == 1


def test_of_a_living_run_the_step_at_work_counts_until_it_is_known_to_be_lost() -> None:
    story = Story().attempt(supervisor=[(0, BEGUN)], rank_0=trains(2, 3, 1, 5, 7))
    assert told(story.split(now=9)) == {"restart": 2, "restore": 1, "productive": 6}
    assert told(story.split()) == {"restart": 2, "restore": 1, "productive": 4}


@pytest.mark.parametrize(
    ("rank", "kind"),
    [
        ([], "restart"),
        ([(4, BEGUN)], "restore"),
        ([(4, BEGUN), (6, ev.Resumed(step=0))], "productive"),
    ],
)
def test_of_a_living_run_the_end_is_what_it_does(rank: Told, kind: str) -> None:
    story = killed_once().attempt(supervisor=[(100, BEGUN)], **({"rank_0": rank} if rank else {}))
    before = killed_once().split().seconds
    found = story.split(now=1000).seconds
    assert found[kind] - before[kind] > 890  # type: ignore[literal-required]


def test_a_hang_is_detected_from_its_beginning_on() -> None:
    hang = ev.HangDetected(phase="step", seconds=30.0, limit=30.0)
    story = Story().attempt(
        supervisor=[(0, BEGUN), (37, hang), died(40, 38, "hang"), decided(40)],
        rank_0=trains(1, 2, 1, 4, 6),
    )
    assert told(story.split()) == {
        "restart": 1, "restore": 1, "productive": 4, "reexecuted": 1, "detection": 33
    }  # fmt: skip


def test_the_first_exception_of_a_rank_is_the_death_of_all() -> None:
    raised = ev.ExceptionRaised(kind="builtins.KeyError")
    story = Story().attempt(
        world=2,
        supervisor=[(0, BEGUN), died(16, 15), decided(16)],
        rank_0=[*trains(0, 0, 1, 2, 4), (9, raised)],
        rank_1=[*trains(0, 0, 1, 2, 4), (5, raised)],
    )
    assert told(story.split()) == {"productive": 4, "reexecuted": 1, "detection": 11}


def test_what_is_saved_on_the_way_out_is_a_capture() -> None:
    story = Story().attempt(
        supervisor=[(0, BEGUN), died(9), decided(10)],
        rank_0=[
            *trains(0, 0, 1, 4),
            (5, ev.ExceptionRaised(kind="builtins.KeyError")),
            (8, ev.SalvageTried(step=1, saved=True)),
        ],
    )
    found = story.split()
    assert told(found) == {"productive": 4, "reexecuted": 1, "capture_stall": 3, "detection": 2}
    assert found.rate.failures == 0  # no step was lost


def test_ranks_have_a_line_each_and_the_run_has_their_mean() -> None:
    story = Story().attempt(
        world=2,
        supervisor=[(0, BEGUN)],
        rank_0=[*trains(2, 4, 1, 6), (10, ev.LoopStalled(step=1, seconds=4.0))],
        rank_1=[*trains(4, 6, 1, 8), (10, ev.LoopStalled(step=1, seconds=2.0))],
    )
    assert told(story.split()) == {
        "restart": 3, "restore": 2, "productive": 2, "capture_stall": 3
    }  # fmt: skip


def test_a_rank_that_never_came_was_starting() -> None:
    story = Story().attempt(
        world=2, supervisor=[(0, BEGUN), died(10), decided(10)], rank_0=[(2, BEGUN)]
    )
    assert told(story.split()) == {"restart": (2 + 10) / 2, "restore": 8 / 2}


def test_a_stop_is_idle_until_somebody_runs_it_again() -> None:
    story = Story().attempt(
        supervisor=[(0, BEGUN), died(8, cause="preempted"), decided(8, 0, "stop")],
        rank_0=[
            *trains(0, 0, 1, 5),
            (6, ev.LoopStalled(step=1, seconds=1.0)),
            (6, ev.RunStopped(step=1, signal=15)),
        ],
    )
    story.attempt("another", supervisor=[(100, BEGUN), (100, planned(2))], rank_0=[(103, BEGUN)])
    found = story.split(now=104)
    assert told(found) == {
        "productive": 5, "capture_stall": 1, "idle": 98 - 6, "restart": 2 + 3, "restore": 1
    }  # fmt: skip
    assert found.rate.failures == 0


def test_where_the_supervisor_died_with_it_nothing_is_known_behind_the_ranks_last_event() -> None:
    story = Story().attempt(
        supervisor=[(0, BEGUN), (20, ev.PhasesMeasured(phases={}))],
        rank_0=[*trains(0, 0, 1, 5), (6, ev.SnapshotVerified(step=1, manifest="m"))],
    )
    story.attempt("another", supervisor=[(50, BEGUN), (50, planned(1))], rank_0=trains(53, 54, 1))
    found = story.split()
    assert told(found) == {
        "productive": 5, "reexecuted": 1, "idle": 49 - 6, "restart": 1 + 3, "restore": 1
    }  # fmt: skip
    assert found.rate == Rate(1, pytest.approx(6))


def test_attempts_that_torchrun_begins_itself_are_restarts_of_the_same_supervisor() -> None:
    """The supervisor's word comes behind the second one's end, and is about that."""
    story = Story().attempt(
        supervisor=[(0, BEGUN), died(31, 30), decided(33)],
        rank_0=[*trains(0, 0, 1, 4, 8), (9, ev.ExceptionRaised(kind="E"))],
    )
    story.attempt(rank_0=trains(12, 13, 1, 17, 21, 25))
    assert told(story.split()) == {
        "productive": 8 + 4,
        "reexecuted": 1 + 8 + 5,
        "restart": 3,
        "restore": 1,
        "detection": 3,
    }


def test_a_run_without_a_supervisor() -> None:
    story = Story().attempt("", rank_0=[*trains(0, 1, 1, 3, 5), (6, ev.ExceptionRaised(kind="E"))])
    story.attempt("", rank_0=[(20, BEGUN), (20, planned(2)), *trains(20, 21, 1, 23, 25, 27)[1:]])
    assert told(story.split()) == {
        "restore": 2, "productive": 4 + 2, "reexecuted": 1 + 4, "idle": 18 - 6, "restart": 2
    }  # fmt: skip


def test_steps_count_once_however_often_they_are_done() -> None:
    """Three attempts, each of which dies a little further on."""
    story = Story()
    for start, reached in ((0, 3), (20, 2), (40, 5)):
        steps = [start + 2.0 * step for step in range(1, reached + 1)]
        story.attempt("", rank_0=[*trains(start, start, 1, *steps)])
    found = told(story.split())
    assert found["productive"] == 5 * 2
    assert found["reexecuted"] == (2 + 3) * 2


def test_other_clocks_move_no_more_than_the_boundary_between_them() -> None:
    """The rank's host is 4 s behind its supervisor's: it seems to attach before it was started."""
    right = killed_once()
    wrong = killed_once()
    for key, events in wrong._streams.items():
        if key.writer == "rank-0":
            wrong._streams[key] = [
                (lsn, msgspec.structs.replace(event, at=event.at - 4))  # type: ignore[type-var]
                for lsn, event in events
            ]
    one, other = right.split(), wrong.split()
    assert other.wall in (one.wall, one.wall + 4)
    for kind in ("productive", "capture_stall"):
        assert other.seconds[kind] == pytest.approx(one.seconds[kind])
    for kind in KINDS:
        assert abs(other.seconds[kind] - one.seconds[kind]) <= 2 * 4 + 1e-6  # a boundary an attempt


def test_a_run_that_nobody_attached_to_says_nothing() -> None:
    story = Story().attempt(supervisor=[(0, BEGUN), died(9), decided(9)])
    assert split(story.state) is None
    assert split(RunState((), {})) is None


# --- any history --------------------------------------------------------------------------------

moments = st.floats(0.0, 50.0)
things = st.one_of(
    st.builds(ev.Resumed, step=st.integers(0, 5)),
    st.builds(ev.PlaceReached, step=st.integers(0, 5)),
    st.builds(ev.StepCompleted, step=st.integers(1, 9)),
    st.builds(ev.StepCompleted, step=st.integers(1, 9)),
    st.builds(
        ev.LoopStalled,
        step=st.just(1),
        seconds=st.floats(-1.0, 20.0),
        commit=st.booleans(),
    ),
    st.builds(ev.ExceptionRaised, kind=st.just("E")),
    st.builds(ev.SalvageTried, step=st.just(1), saved=st.booleans()),
    st.builds(ev.RunStopped, step=st.just(1)),
    st.builds(ev.RunFinished, step=st.just(1)),
    st.builds(ev.RecoveryPlanned, plan=st.just(Plan()), seconds=moments),
)
words = st.one_of(
    st.builds(
        ev.WorkerExited,
        pid=st.just(1),
        cause=st.sampled_from(["crash", "hang", "done", "preempted"]),
        seen=moments.map(lambda at: 1e9 + at),
    ),
    st.builds(ev.HangDetected, phase=st.just("step"), seconds=moments, limit=st.just(1.0)),
    st.builds(
        ev.RestartDecided,
        action=st.sampled_from(["restart", "stop"]),
        delay=moments,
        reason=st.just(""),
    ),
)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Attempts with events of any order, at any time, on clocks that may go backwards."""
    story = Story()
    for number in range(draw(st.integers(1, 4))):
        told: dict[str, Told] = {}
        for writer in draw(st.sets(st.sampled_from(["rank_0", "rank_1", "supervisor"]))):
            kinds = words if writer == "supervisor" else things
            pairs = draw(st.lists(st.tuples(moments, kinds), max_size=8))
            if draw(st.booleans()):
                pairs.sort(key=lambda pair: pair[0])
            told[writer] = [(draw(moments) + 30 * number, BEGUN)] + [
                (at + 30 * number, event) for at, event in pairs
            ]
        story.attempt(draw(st.sampled_from(["", "s", "t"])), world=2, **told)
    return story


@given(stories(), st.one_of(st.none(), st.floats(0.0, 300.0)))
def test_whatever_happened_the_parts_add_up_to_the_wall_time(
    story: Story, now: float | None
) -> None:
    state = story.state
    found = split(state, None if now is None else 1e9 + now)
    if found is None:
        assert not any(
            record.begun for key, record in state.records.items() if key.writer[0] == "r"
        )
        return
    assert set(found.seconds) == set(KINDS)
    assert all(part >= -1e-6 for part in found.seconds.values()), found
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-9, abs=1e-4)
    assert 0.0 <= found.share <= 1.0 + 1e-9


@given(stories())
def test_the_order_in_which_streams_are_read_does_not_matter(story: Story) -> None:
    state = story.state
    turned = RunState(state.entries, dict(reversed(state.records.items())))
    one, other = split(state), split(turned)
    assert (one is None) == (other is None)
    if one and other:
        assert one.seconds == pytest.approx(other.seconds)
