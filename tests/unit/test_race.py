"""The pure part of the race (tests/bench/goodput): schedule, log, costs, replay, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from tests.bench.goodput import costs, schedule, table
from tests.bench.goodput.costs import Costs, Kill, Saving, replay
from tests.bench.goodput.steplog import StepLog, first_difference, parse

BARE = 0.1


def told(*attempts: tuple[int, float, int, Iterable[float]]) -> str:
    """A log: of each process its pid, when it began, its first step, and when each was done."""
    lines = []
    for pid, begun, first, done in attempts:
        lines.append(f"begun {begun!r} {pid}")
        for number, at in enumerate(done, first):
            lines.append(f"step {at!r} {pid} {number} data{number} loss{number}")
    return "".join(f"{line}\n" for line in lines)


def steady(begin: float, count: int, step: float = BARE) -> list[float]:
    return [begin + step * n for n in range(1, count + 1)]


# -- schedule ------------------------------------------------------------------------------------


def test_the_schedule_is_a_function_of_its_seed_and_has_the_rate_that_was_asked_for():
    many = schedule.gaps(7, 4.0, 20_000)
    assert many[:10] == schedule.gaps(7, 4.0, 10) != schedule.gaps(8, 4.0, 10)
    assert sum(many) / len(many) == pytest.approx(15.0, rel=0.02)
    beyond = sum(gap > 15.0 for gap in many) / len(many)
    assert beyond == pytest.approx(math.exp(-1), abs=0.01)  # exponential, not just of that mean


def test_even_a_bare_loop_is_still_training_when_the_last_kill_comes():
    gaps = schedule.gaps(3, 4.0, 10)
    steps = schedule.steps_for(gaps, BARE, per_epoch=20)
    assert steps * BARE > sum(gaps) and steps % 20 == 0
    assert (steps - 40) * BARE < 1.1 * sum(gaps)


# -- log -----------------------------------------------------------------------------------------


def test_a_log_is_read_and_a_line_without_its_end_is_not_there_yet():
    text = told((5, 1.0, 1, [2.0, 3.0])) + "note 3.5 5 some words\nended 4.0 5 abc\nstep 4.5 5 3"
    log = parse(text)
    assert log.begun == {5: 1.0}
    assert [(step.number, step.at, step.data) for step in log.steps] == [
        (1, 2.0, "data1"),
        (2, 3.0, "data2"),
    ]
    assert (log.weights, log.notes) == ("abc", ["some words"])


def test_other_samples_or_another_loss_in_any_execution_are_a_divergence():
    reference = parse(told((1, 0.0, 1, steady(0, 9)))).steps
    same = parse(told((1, 0.0, 1, steady(0, 5)), (2, 1.0, 4, steady(2, 6)))).steps
    assert first_difference(same, reference) is None
    last = same[-1]._replace(data="x")
    assert first_difference([*same[:-1], last], reference) == last.number == 9
    fourth = same[3]._replace(loss="x")
    assert first_difference([last, fourth, *same], reference) == 4  # even if it was right once
    assert first_difference([same[0]._replace(number=77)], reference) == 77


# -- costs ---------------------------------------------------------------------------------------


def test_a_kill_costs_the_time_between_two_steps_and_the_steps_made_again():
    log = parse(told((1, 0.0, 1, steady(1.0, 10)), (2, 2.5, 8, steady(4.0, 10))))
    (kill,) = costs.kills(log, [(2.05, 1)], BARE)
    assert kill.step == 10
    assert kill.down == pytest.approx(4.1 - 2.0 - BARE)
    assert kill.again == 3  # 8, 9, 10
    assert kill.notice == pytest.approx(0.45)


def test_who_stood_ready_before_the_kill_was_not_waited_for():
    log = parse(told((1, 0.0, 1, steady(1.0, 10)), (2, 1.5, 11, steady(2.3, 3))))
    (kill,) = costs.kills(log, [(2.05, 1)], BARE)
    assert (kill.again, kill.notice) == (0, None)


def saved_every_ten(stall: float, slower: float, base: float, steps: int = 81) -> StepLog:
    """Steps after each tenth: the first one waits for the save, the next three are slower."""
    at, done = 0.0, []
    for number in range(1, steps + 1):
        place = (number - 1) % 10
        at += BARE + base + (stall if place == 0 else slower if place < 4 else 0.0)
        done.append(at)
    return parse(told((1, 0.0, 1, done)))


def test_a_save_costs_its_stall_and_what_it_slows_the_steps_behind_it():
    found = costs.saving(saved_every_ten(stall=0.2, slower=0.03, base=0.01), 10, BARE)
    assert found.cost == pytest.approx(0.2 + 3 * 0.03)
    assert found.base == pytest.approx(0.01)


def test_a_save_that_is_lost_in_the_noise_costs_as_much_as_the_noise():
    log = parse(told((1, 0.0, 1, steady(0.0, 81))))
    noisy = [
        step._replace(at=step.at + 0.02 * ((step.number - 1) // 10 % 2)) for step in log.steps
    ]  # each window is 20 ms longer or shorter than the one before it
    found = costs.saving(log._replace(steps=noisy), 10, BARE)
    assert 0.005 < found.cost < 0.02


def test_a_save_whose_steps_are_not_all_there_is_not_counted():
    whole = costs.saving(saved_every_ten(0.2, 0.03, 0.0, steps=20), 10, BARE)
    cut = costs.saving(saved_every_ten(0.2, 0.03, 0.0, steps=22), 10, BARE)
    assert cut.cost == pytest.approx(whole.cost)


def test_noise_is_no_gain():
    found = costs.saving(saved_every_ten(stall=0.0, slower=-0.01, base=-0.02), 10, BARE)
    assert found == (pytest.approx(0.0, abs=1e-9), 0.0)


def test_the_first_steps_of_a_process_are_no_measure():
    slow_start = [5.0, 9.0, *steady(9.0, 20)]
    log = parse(told((1, 0.0, 1, slow_start), (2, 20.0, 20, [25.0, 29.0, *steady(29.0, 20)])))
    assert max(seconds for _, seconds in costs.intervals(log)) == pytest.approx(BARE)
    assert costs.median_step([log]) == pytest.approx(BARE)


def test_goodput_is_what_a_bare_loop_would_have_taken_over_what_it_took():
    assert costs.goodput(600, BARE, 100.0) == pytest.approx(0.6)
    log = parse(told((1, 0.0, 1, steady(1.0, 10)), (2, 2.5, 8, steady(4.0, 13))))
    assert costs.measured(log, BARE) == pytest.approx(19 * BARE / (5.3 - 1.1))


def test_a_save_that_was_not_whole_when_the_kill_came_is_counted_as_steps_made_again():
    kills = [Kill(0, 0.0, again, None) for again in (9, 11, 10)]
    assert costs.late(kills, 11) == pytest.approx(5.0)
    assert costs.late(kills, 40) == 0.0


# -- replay --------------------------------------------------------------------------------------


def of(down: float = 2.0, cost: float = 0.05, base: float = 0.0, late: float = 0.0) -> Costs:
    return Costs(BARE, Saving(cost, base), (down,), late)


def test_a_replay_comes_to_what_the_formula_for_rare_kills_says():
    """One minus the shares lost: saves, half an interval again, and the time down."""
    between, step = 3600.0, BARE
    every = costs.best_every(Saving(0.05, 0.0), BARE, between)
    assert every == pytest.approx(math.sqrt(2 * 0.05 * between) / step, rel=0.01)
    lost = 0.05 / (every * step) + (every * step / 2 + 2.0) / between
    assert 1 - costs.replay(of(), between, seed=1) == pytest.approx(lost, rel=0.05)


def test_rarer_kills_lose_less_and_nothing_lost_is_the_ceiling():
    shares = [costs.replay(of(), between, seed=1) for between in table.RATES.values()]
    assert shares == sorted(shares) and shares[0] < 0.98 < 0.999 < shares[-1] < 1.0
    assert costs.replay(of(0.0, 0.0), 1e9, seed=1) == pytest.approx(1.0)


@pytest.mark.parametrize("worse", [{"down": 4.0}, {"cost": 0.2}, {"base": 0.005}, {"late": 20.0}])
def test_each_cost_counts(worse: dict[str, float]):
    assert costs.replay(of(**worse), 60.0, seed=1) < costs.replay(of(), 60.0, seed=1) - 0.005


def test_a_base_of_each_step_is_lost_however_rare_the_kills_are():
    assert costs.replay(of(base=0.01), 14 * 86400.0, seed=1) == pytest.approx(1 / 1.1, rel=1e-3)


def test_where_kills_come_faster_than_saves_nothing_is_gained():
    assert costs.replay(of(late=1e9), 60.0, seed=1) == 0.0


# -- tables --------------------------------------------------------------------------------------


def row(name: str, goodput: float, down: float, **more: Any) -> dict[str, Any]:
    kill = {"step": 9, "down": down, "again": 4, "notice": None}
    found = {
        "name": name,
        "settings": f"settings of {name}",
        "versions": {"torch": "2.13.0"},
        "load": 0.5,
        "every": 7,
        "bare_step_seconds": BARE,
        "goodput": goodput,
        "seconds": 64.4,
        "saving": {"cost": 0.05, "base": 0.001},
        "kills": [kill, {**kill, "down": down + 1}],
        "late": 1.0,
        "first_step_that_differs": None,
        "same_weights": True,
        "notes": [],
    }
    return found | more


REPORT: dict[str, Any] = {
    "task": {"layers": 4},
    "steps": 600,
    "kills_per_minute": 4.0,
    "seconds_before_each_kill": [1.0, 2.0],
    "processors": 2,
    "contenders": [
        {"name": "bare", "settings": "nothing", "versions": {}, "load": 0.1}
        | {"bare_step_seconds": BARE, "goodput": 0.98},
        row("slow", 0.70, 3.0, first_step_that_differs=31, same_weights=False),
        row("walrecover", 0.93, 0.4),
        {"name": "absent", "settings": "none", "load": 0.2, "reason": "not installed: absent"},
    ],
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_drawn_from_the_report_best_first():
    lines = [cells(line) for line in table.measured(REPORT).splitlines()]
    assert len({len(line) for line in lines}) == 1
    assert [line[0] for line in lines[2:]] == ["bare, no kills", "walrecover", "slow", "absent"]
    told = "900.0 ms, 4.0, 50.0 ms, 1.0 ms, 7, identical; 2 kills"
    assert (lines[3][1:3], lines[3][4:]) == (
        ["93.0%", "94.9%"],
        [cell.replace(";", ",") for cell in told.split(", ")],
    )
    replayed = replay(table.costs_of(REPORT["contenders"][2]), (64.4 - 0.4 - 1.4) / 2, table.SEED)
    assert lines[3][3] == table.percent(replayed)


def test_what_diverged_or_did_not_run_is_said():
    text = table.measured(REPORT)
    assert "diverged from step 31" in text and "did not run: not installed: absent" in text
    assert table.verdict(row("x", 1.0, 1.0, same_weights=False)) == "other weights"


def test_every_rate_and_every_setting_is_told():
    body = [cells(line) for line in table.by_rate(REPORT).splitlines()]
    assert body[0][1:] == list(table.RATES)
    assert [line[0] for line in body[2:]] == ["walrecover", "slow"]
    assert float(body[2][1].rstrip("%")) > float(body[3][1].rstrip("%"))
    told = table.conditions(REPORT)
    assert all(f"settings of {name}" in told for name in ("slow", "walrecover"))
    assert "torch 2.13.0" in told and "600 steps" in told and "load 0.5" in told


def test_a_share_is_told_with_the_digits_that_tell_it_from_all():
    assert [table.percent(share) for share in (0.5, 0.9876, 0.9987, 0.99987, 0.999987)] == [
        "50.0%",
        "98.8%",
        "99.87%",
        "99.987%",
        "99.9987%",
    ]


def test_the_tables_replace_what_stood_between_the_marks_and_nothing_else():
    page = "above\n<!-- race -->\nold\n<!-- /race -->\nbelow\n"
    once = table.put(page, "new \\1 |")
    assert once == "above\n<!-- race -->\nnew \\1 |\n<!-- /race -->\nbelow\n"
    assert table.put(once, "new \\1 |") == once
    assert table.put("no marks\n", "new") == "no marks\n"
