"""The restart decision: a pure function, so a table and a few properties say all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.policy import Decision, Ended, Policy, decide_restart

POLICY = Policy(max_restarts=3, initial=1.0, factor=2.0, cap=300.0, jitter=0.25)


def killed(attempt: int, steps: int = 0, restored: bool = True) -> Ended:
    return Ended(attempt, signal=9, restored=restored, steps=steps)


def failed(attempt: int, code: int = 1, restored: bool = True) -> Ended:
    return Ended(attempt, code=code, restored=restored)


def decide(*history: Ended, policy: Policy = POLICY, draw: float = 0.5) -> Decision:
    return decide_restart(0.0, history, policy, draw)


@pytest.mark.parametrize(
    ("history", "action", "delay", "says"),
    [
        pytest.param([Ended(1, code=0, steps=9)], "stop", 0.0, "done", id="done"),
        pytest.param([Ended(1, code=0)], "stop", 0.0, "exit code 0", id="done-without-a-step"),
        pytest.param([killed(1, steps=31)], "restart", 0.0, "31 new steps", id="progress"),
        pytest.param([killed(1)], "restart", 1.0, "signal 9", id="no-progress"),
        pytest.param([killed(1), killed(2)], "restart", 2.0, "2 in a row", id="twice"),
        pytest.param([killed(1), killed(2), failed(3, 7)], "restart", 4.0, "exit code 7", id="3x"),
        pytest.param([killed(n) for n in (1, 2, 3, 4)], "stop", 0.0, "--max-restarts", id="spent"),
        pytest.param(
            [failed(n, restored=False) for n in (1, 2, 3, 4)],
            "stop",
            0.0,
            "before training began",
            id="never-began",
        ),
        pytest.param(
            [killed(1), killed(2), killed(3), killed(4, steps=1)],
            "restart",
            0.0,
            "1 new step",
            id="a-step-refills-the-budget",
        ),
        pytest.param(
            [killed(1), killed(2, steps=5), killed(3)],
            "restart",
            1.0,
            "1 in a row",
            id="a-step-resets-the-backoff",
        ),
        pytest.param(
            [killed(1, restored=False), killed(2, restored=False), killed(3, restored=False)],
            "restart",
            4.0,
            "3 in a row",
            id="dying-in-recovery-backs-off",
        ),
        pytest.param(
            [Ended(1, signal=15, steps=4, asked_to_stop=True)],
            "stop",
            0.0,
            "asked to stop",
            id="asked-to-stop",
        ),
        pytest.param([failed(1, 127, False)], "stop", 0.0, "cannot be run", id="not-found"),
        pytest.param([failed(1, 126, False)], "stop", 0.0, "cannot be run", id="not-executable"),
        pytest.param([failed(1, 127)], "restart", 1.0, "127", id="127-of-a-training-script"),
    ],
)
def test_the_decision(history: list[Ended], action: str, delay: float, says: str) -> None:
    decision = decide(*history)
    assert (decision.action, decision.delay) == (action, delay)
    assert says in decision.reason


def test_no_restart_at_all_with_a_budget_of_zero() -> None:
    none = Policy(max_restarts=0)
    assert decide(killed(1, steps=8), policy=none).action == "stop"
    assert decide(killed(1), policy=none).action == "stop"


@pytest.mark.parametrize(("draw", "delay"), [(0.0, 3.0), (0.5, 4.0), (0.75, 4.5)])
def test_jitter_spreads_around_the_backoff(draw: float, delay: float) -> None:
    assert decide(killed(1), killed(2), killed(3), draw=draw).delay == pytest.approx(delay)


def test_the_same_arguments_give_the_same_decision() -> None:
    history = [killed(1, steps=2), killed(2)]
    assert decide_restart(5.0, history, POLICY, 0.3) == decide_restart(5.0, history, POLICY, 0.3)


endings = st.builds(
    Ended,
    attempt=st.integers(1, 50),
    code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    restored=st.booleans(),
    steps=st.integers(0, 3),
    asked_to_stop=st.booleans(),
)
policies = st.builds(
    Policy,
    max_restarts=st.integers(0, 6),
    initial=st.floats(0, 10),
    factor=st.floats(1, 4),
    cap=st.floats(0, 600),
    jitter=st.floats(0, 1),
)
draws = st.floats(0, 1, exclude_max=True)


@given(st.lists(endings, min_size=1, max_size=12), policies, draws)
def test_delays_stay_in_bounds_and_every_decision_has_a_reason(
    history: list[Ended], policy: Policy, draw: float
) -> None:
    decision = decide(*history, policy=policy, draw=draw)
    assert decision.action in ("restart", "stop")
    assert decision.reason
    assert 0.0 <= decision.delay <= policy.cap * (1.0 + policy.jitter)
    if decision.action == "stop" or history[-1].steps:
        assert decision.delay == 0.0


@given(st.lists(endings, min_size=1, max_size=40), policies, draws)
def test_no_more_than_max_restarts_in_a_row_without_a_step(
    endings: list[Ended], policy: Policy, draw: float
) -> None:
    """Lived through: every attempt ends as drawn until the policy stops. Attempts that restored
    and attempts that never came so far have a budget each."""
    trained = idle = 0
    for count in range(1, len(endings) + 1):
        last = endings[count - 1]
        if last.steps:
            trained = idle = 0
        decision = decide(*endings[:count], policy=policy, draw=draw)
        if decision.action == "stop":
            return
        if not last.steps:
            trained += last.restored
            idle += not last.restored
        assert trained <= policy.max_restarts
        assert idle <= policy.max_restarts


@given(st.lists(st.booleans(), min_size=1, max_size=20), draws)
def test_the_backoff_never_shrinks_without_a_step(restored: list[bool], draw: float) -> None:
    patient = Policy(max_restarts=100)
    history = [killed(n, restored=r) for n, r in enumerate(restored, start=1)]
    delays = [
        decide(*history[:count], policy=patient, draw=draw).delay
        for count in range(1, len(history) + 1)
    ]
    assert delays == sorted(delays)


def test_a_huge_budget_does_not_overflow() -> None:
    patient = Policy(max_restarts=10**6)
    assert decide(*map(killed, range(1, 1200)), policy=patient).delay == patient.cap
