"""When a rank hangs and who holds the others up: pure functions, so time is a number here."""

from __future__ import annotations

import math

import pytest

from walrecover.blame import Condition, describe, slowest
from walrecover.errors import BadInput
from walrecover.events import HangDetected, PhasesMeasured, PhaseTimes
from walrecover.hangs import (
    FLOORS,
    GONE_SECONDS,
    SPANS,
    Limits,
    Phase,
    Reading,
    Rules,
    Standing,
    Times,
    Watch,
    interval,
    judge,
    learned,
    limit_of,
    parse,
)


def times(**longest: float) -> Times:
    """Five durations of each: three short ones, and two that are equal."""
    found = Times()
    for span, seconds in longest.items():
        for part in (0.1, 0.1, 0.1, 1.0, 1.0):
            found.add(span.replace("_", "-"), part * seconds)  # type: ignore[arg-type]
    return found


def stands(
    rank: int | None, phase: Phase, seconds: float, step: int = 50, at: float = 0.0, **more: bool
) -> Standing:
    return Standing(rank, step, phase, at, seconds, **more)


def rules(given: Limits | None = None, known: Times | None = None, **more: object) -> Rules:
    return Rules(given or Limits(), known or Times(), **more)  # type: ignore[arg-type]


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span", "seconds"),
    [
        ("auto", "step", None),
        ("10m", "step", 600.0),
        ("1.5h", "snapshot", 5400.0),
        ("10m", "start-up", None),  # a script that never attaches would be one start-up
        ("off", "start-up", math.inf),
        ("step=30s, snapshot=off", "step", 30.0),
        ("step=30s, snapshot=off", "snapshot", math.inf),
        ("start-up=30s", "start-up", 30.0),
        ("start-up=30s", "step", None),
    ],
)
def test_limits_as_people_write_them(text: str, span: str, seconds: float | None) -> None:
    assert parse(text).of(span) == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "10", "0s", "-1s", "10 days", "steps=10m", "step=", "step=5"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--hang-timeout"):
        parse(text)


def test_a_limit_is_what_was_set_else_learned_else_the_floor() -> None:
    assert limit_of("step", Limits(step=5.0), times(step=900.0)) == (5.0, "set")
    assert limit_of("step", Limits(), times(step=900.0)) == (2700.0, "learned")
    assert limit_of("step", Limits(), times(step=0.2)) == (FLOORS["step"], "floor")
    assert limit_of("step", Limits(), Times()) == (FLOORS["step"], "floor")


def test_one_long_step_alone_is_not_believed() -> None:
    known = times(step=1.0)
    known.add("step", 5000.0)
    assert limit_of("step", Limits(), known).seconds == FLOORS["step"]
    known.add("step", 4000.0)
    assert limit_of("step", Limits(), known).seconds == 12000.0


def test_earlier_attempts_are_learned_from() -> None:
    known = learned(PhasesMeasured(phases={"snapshot": PhaseTimes(9, 600.0, 700.0, 650.0)}))
    assert limit_of("snapshot", Limits(), known).seconds == 3 * 650.0
    known.add("snapshot", 5000.0)
    assert limit_of("snapshot", Limits(), known).seconds == 3 * 700.0
    again = learned(PhasesMeasured(phases=known.measured()))
    assert limit_of("snapshot", Limits(), again).seconds == 3 * 700.0
    assert learned(PhasesMeasured(phases={"of a newer release": PhaseTimes()})).measured() == {}


def test_a_multiple_of_the_median_counts_for_steps_only() -> None:
    known = Times()
    for _ in range(5):
        known.add("step", 60.0)
        known.add("between", 1500.0)
    assert limit_of("step", Limits(), known).seconds == 30 * 60.0
    assert limit_of("between", Limits(), known).seconds == 3 * 1500.0


# --- what counts as standing still --------------------------------------------------------------


def watch(moves: list[tuple[float, Reading]], every: float = 1.0) -> tuple[Watch, Times]:
    """Watch rank 0, whose beat was at each time as the moves say."""
    found = Times()
    watched = Watch(found, 0.0, every)
    for now, reading in moves:
        watched.look(now, {0: reading})
    return watched, found


def test_a_beat_that_moves_stands_nowhere() -> None:
    moves = [(float(n), Reading(n, "training", n - 0.5)) for n in range(1, 100)]
    watched, found = watch(moves)
    assert watched.standings()[0].seconds == 0.0
    measured = found.of("step")
    assert measured is not None and (measured.count, measured.median) == (98, 1.0)


def test_steps_between_two_looks_share_the_time_between_their_beats() -> None:
    moves = [(5.0, Reading(10, "training", 4.5)), (10.0, Reading(30, "training", 9.5))]
    _, found = watch(moves, every=5.0)
    assert found.of("step") == PhaseTimes(1, 0.25, 0.25, 0.0)


def test_every_phase_is_measured_from_beat_to_beat() -> None:
    said: list[tuple[Phase, int]] = [
        ("starting", 0), ("restoring", 0), ("first", 0), ("training", 1), ("snapshot", 1),
        ("training", 1), ("between", 1), ("training", 2), ("ended", 2),
    ]  # fmt: skip
    moves = [(10.0 * n, Reading(step, phase, 10.0 * n)) for n, (phase, step) in enumerate(said, 1)]
    _, found = watch(moves, every=10.0)
    measured = found.measured()
    assert {span: one.count for span, one in measured.items()} == {
        "start-up": 1, "first-step": 1, "step": 3, "snapshot": 1, "between": 1,
    }  # fmt: skip
    assert measured["start-up"].longest == 30.0
    assert measured["snapshot"].longest == 10.0


def test_time_in_which_nobody_watched_does_not_count() -> None:
    still = Reading(5, "training", 0.5)
    watched, _ = watch([(1.0, still), (2.0, still), (10_000.0, still), (10_001.0, still)])
    assert watched.standings()[0].seconds == 1.0 + 2.0 + 1.0


def test_nor_does_it_count_as_the_length_of_a_step() -> None:
    moves = [(1.0, Reading(5, "training", 0.5)), (10_000.0, Reading(6, "training", 9_999.5))]
    _, found = watch(moves)
    measured = found.of("step")
    assert measured is not None and measured.longest <= 3.0


def test_before_any_beat_the_command_itself_stands() -> None:
    watched = Watch(Times(), 0.0, 1.0)
    for now in range(1, 11):
        watched.look(float(now), {})
    assert watched.standings() == [Standing(None, 0, "starting", 0.0, 10.0)]


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "span"),
    [
        ("starting", "start-up"), ("restoring", "start-up"), ("first", "first-step"),
        ("training", "step"), ("between", "between"), ("snapshot", "snapshot"),
        ("ended", "shut-down"),
    ],
)  # fmt: skip
def test_every_phase_has_its_limit(phase: Phase, span: str) -> None:
    given = Limits(**{name.replace("-", "_"): 7.0 if name == span else 9e9 for name in SPANS})
    assert judge([stands(0, phase, 7.0)], rules(given)) is None
    hang = judge([stands(0, phase, 7.1)], rules(given))
    assert hang is not None and hang.limit == (7.0, "set")
    assert judge([stands(0, phase, 9e8)], rules(parse("off"))) is None


def test_a_slow_step_is_not_a_hang() -> None:
    known = times(step=0.2)
    assert judge([stands(0, "training", 899.0)], rules(known=known)) is None
    assert judge([stands(0, "training", 901.0)], rules(known=known)) is not None


def test_who_waits_for_a_long_save_does_not_hang() -> None:
    saving = [stands(0, "snapshot", 1700.0), stands(1, "training", 1700.0)]
    assert judge(saving, rules()) is None
    hang = judge([one._replace(seconds=1801.0) for one in saving], rules())
    assert hang is not None and hang.standing.rank == 0


def test_a_rank_that_runs_on_and_one_that_ended_excuse_nobody() -> None:
    others = [stands(0, "training", 0.0, step=99), stands(2, "ended", 3.0, step=99)]
    hang = judge([*others, stands(1, "training", 901.0)], rules())
    assert hang is not None and hang.standing.rank == 1


def test_a_command_that_nobody_knows_to_attach_is_left_alone() -> None:
    silent = [stands(None, "starting", 1e9)]
    assert judge(silent, rules()) is None
    assert judge(silent, rules(attaches=True)) is not None
    assert judge(silent, rules(Limits(start_up=60.0))) is not None


def test_a_process_that_is_gone_is_missed_sooner() -> None:
    left = [stands(0, "training", GONE_SECONDS + 1), stands(1, "training", GONE_SECONDS + 1)]
    assert judge(left, rules()) is None
    hang = judge([left[0], left[1]._replace(gone=True)], rules())
    assert hang is not None and hang.limit.why == "gone"


@pytest.mark.parametrize("phase", ["ended", "between"])
def test_a_command_that_goes_on_after_its_training_is_left_alone(phase: Phase) -> None:
    gone = [stands(rank, phase, 9e9, gone=True) for rank in range(2)]
    assert judge(gone, rules()) is None
    ended = [stands(0, "ended", 9e9, gone=True), stands(1, "training", 5.0)]
    assert judge(ended, rules()) is None


def test_a_script_whose_steps_are_only_counted_is_given_time_and_its_end_is_none_of_ours() -> None:
    """It may evaluate between two steps; and a command may go on with another program."""
    floor = FLOORS["between"]
    assert judge([stands(0, "counted", floor - 1)], rules()) is None
    assert judge([stands(0, "counted", floor + 1)], rules()) is not None
    assert judge([stands(0, "counted", 10 * floor, gone=True)], rules()) is None


def test_the_same_place_gets_twice_the_time_after_a_hang() -> None:
    last = HangDetected(phase="step", step=50, seconds=901.0, limit=900.0)
    assert judge([stands(0, "training", 1802.0)], rules(last=last)) is None
    assert judge([stands(0, "training", 1803.0)], rules(last=last)) is not None
    assert judge([stands(0, "training", 901.0, step=51)], rules(last=last)) is not None
    set_to = Limits(step=2.0)
    assert judge([stands(0, "training", 3.0)], rules(set_to, last=last)) is not None


# --- who ----------------------------------------------------------------------------------------

EQUAL = [stands(0, "training", 601.0, at=7.0), stands(1, "training", 601.0, at=8.0)]


@pytest.mark.parametrize(
    ("standings", "conditions", "who"),
    [
        ([EQUAL[0], EQUAL[1]._replace(step=49)], {}, 1),
        (EQUAL, {1: Condition("T")}, 1),
        (EQUAL, {1: Condition("D")}, 1),
        ([EQUAL[0], EQUAL[1]._replace(gone=True)], {}, 1),
        (EQUAL, {0: Condition("S", waits=True), 1: Condition("R")}, 1),
        (EQUAL, {}, 0),
    ],
    ids=["behind", "stopped", "uninterruptible", "gone", "not-waiting", "first-to-stand"],
)
def test_the_slowest_rank(
    standings: list[Standing], conditions: dict[int, Condition], who: int
) -> None:
    hang = judge(standings, rules(Limits(step=1.0)))
    assert hang is not None
    assert slowest(hang, conditions).rank == who


def test_the_sentence_names_rank_phase_limit_and_place() -> None:
    hang = judge(EQUAL, rules(Limits(step=300.0)))
    assert hang is not None
    conditions = {1: Condition("T", where="train.py line 31 in loop")}
    one, text = describe(hang, conditions, times(step=0.2))
    assert one.rank == 1
    assert text == (
        "rank 1 made no step for 601 s after step 50 (limit of step 300 s, as set, median step "
        "0.02 s); its process is stopped by a signal; it stands in train.py line 31 in loop; "
        "rank 0 waited with it"
    )


def test_looks_are_a_tenth_of_the_shortest_limit_apart() -> None:
    assert interval(Limits()) == 5.0
    assert interval(Limits(step=2.0)) == 0.2
    assert interval(parse("off")) == 5.0
