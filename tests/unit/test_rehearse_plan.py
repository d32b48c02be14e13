"""The plan of a rehearsal: drawn from a seed alone, spread evenly, and able to meet its quota."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.errors import BadInput
from walrecover.pace import Every
from walrecover.rehearse.plan import Kill, aim_of, draw, pace_for, quota, reach, shortcomings

SECONDS = Every(None, 30.0)


@st.composite
def rehearsals(draw_: st.DrawFn) -> tuple[int, int, int]:
    kills = draw_(st.integers(1, 40))
    return kills, draw_(st.integers(0, 2**32)), draw_(st.integers(kills + 1, 2000))


@given(rehearsals())
def test_each_kill_has_a_stretch_of_the_run_to_itself(rehearsal: tuple[int, int, int]) -> None:
    kills, seed, steps = rehearsal
    plan = draw(kills, seed, steps, pace_for(kills, steps))
    assert len(plan) == kills
    for index, kill in enumerate(plan):
        low, high = (1 + part * (steps - 1) // kills for part in (index, index + 1))
        assert low <= kill.step < high <= steps
        assert 0.0 <= kill.moment < 1.0
        assert 0.0 <= kill.pick < 1.0
    assert [kill.until for kill in plan] == [*(kill.step for kill in plan[1:]), steps]


@given(rehearsals())
def test_a_fifth_is_aimed_at_snapshots_that_will_come(rehearsal: tuple[int, int, int]) -> None:
    kills, seed, steps = rehearsal
    every = pace_for(kills, steps)
    plan = draw(kills, seed, steps, every)
    inside = [kill for kill in plan if kill.aim == "snapshot"]
    assert len(inside) >= quota(kills) == math.ceil(kills / 5)
    assert every.steps
    assert all(kill.step % every.steps == 0 for kill in inside)
    assert not any(kill.aside for kill in inside)


@given(rehearsals())
def test_the_seed_is_all_that_a_plan_depends_on(rehearsal: tuple[int, int, int]) -> None:
    kills, seed, steps = rehearsal
    assert draw(kills, seed, steps, SECONDS) == draw(kills, seed, steps, SECONDS)


def test_another_seed_is_another_plan() -> None:
    assert draw(5, 1, 300, SECONDS) != draw(5, 2, 300, SECONDS)


def test_some_victims_are_no_ranks() -> None:
    plan = draw(100, 1, 1000, SECONDS)
    assert 10 <= sum(kill.aside for kill in plan) <= 40


@pytest.mark.parametrize(("kills", "steps"), [(1, 0), (1, 1), (3, 3), (300, 240)])
def test_more_kills_than_steps_are_refused(kills: int, steps: int) -> None:
    with pytest.raises(BadInput, match=f"at most {max(0, steps - 1)}"):
        draw(kills, 1, steps, SECONDS)


def test_as_many_kills_as_fit_are_drawn() -> None:
    plan = draw(9, 1, 10, Every(1, None))
    assert [kill.step for kill in plan] == list(range(1, 10))


def test_a_pace_without_a_snapshot_for_the_quota_is_refused() -> None:
    with pytest.raises(BadInput, match="smaller --every"):
        draw(5, 1, 100, Every(1000, None))


@pytest.mark.parametrize(
    ("kills", "steps", "every"), [(5, 300, 15), (100, 240, 1), (1, 4, 1), (3, 1200, 100)]
)
def test_every_kill_gets_some_snapshots(kills: int, steps: int, every: int) -> None:
    assert pace_for(kills, steps) == Every(every, None)


@pytest.mark.parametrize(
    ("kills", "steps", "step_seconds", "before"),
    [
        pytest.param(5, 300, 0.1, 298, id="two steps of 0.1 s"),
        pytest.param(5, 300, 0.001, 270, id="at most a tenth"),
        pytest.param(5, 300, 10.0, 299, id="one long step"),
        pytest.param(295, 300, 0.001, 296, id="as many kills as there is room for"),
        pytest.param(400, 300, 0.001, 300, id="more than fit, for `draw` to refuse"),
        pytest.param(1, 0, 0.0, 0, id="no steps at all"),
    ],
)
def test_the_very_last_steps_are_spared(
    kills: int, steps: int, step_seconds: float, before: int
) -> None:
    assert reach(kills, steps, step_seconds) == before


def kill(aim: str, step: int = 1) -> Kill:
    return Kill(step, step + 1, aim, 0.5, 0.5, aside=aim == "step")  # type: ignore[arg-type]


def test_a_missed_snapshot_is_made_up_by_a_later_kill() -> None:
    plan = [kill("step"), kill("snapshot"), kill("step"), kill("step")]
    assert aim_of(plan, 0, inside=0) == plan[0]
    assert aim_of(plan, 1, inside=0) == plan[1]
    assert aim_of(plan, 2, inside=0) == plan[2]._replace(aim="snapshot", aside=False)
    assert aim_of(plan, 2, inside=1) == plan[2]


def test_what_the_kills_lack_is_said() -> None:
    assert shortcomings(5, landed=5, inside=1) == []
    assert "only 4 of 5 kills landed" in shortcomings(5, landed=4, inside=1)[0]
    assert "inside a snapshot, and 1 must" in shortcomings(5, landed=5, inside=0)[0]
