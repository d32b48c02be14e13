"""The restart decision: a pure function, so a table and a few properties say all of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.policy import (
    EXEMPT,
    OF_ALL_KINDS,
    Decision,
    Ended,
    Policy,
    Treatment,
    change,
    decide_restart,
)

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
        pytest.param([killed(1)], "restart", 1.0, "SIGKILL", id="no-progress"),
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


# --- causes, fingerprints, exceptions -----------------------------------------------------------


def raised(
    attempt: int, kind: str = "ValueError", at: int = 30, steps: int = 0, **more: Any
) -> Ended:
    cause = more.pop("cause", "code")
    return Ended(
        attempt,
        code=1,
        restored=True,
        steps=steps,
        cause=cause,
        fingerprint=more.pop("fingerprint", f"{cause}:{kind}@train.py:31"),
        error=f"{kind}: no",
        kinds=(kind, "Exception"),
        at=at,
        **more,
    )


def preempted(attempt: int) -> Ended:
    return Ended(attempt, code=75, restored=True, cause="preempted", fingerprint="preempted")


def crashed(attempt: int, signal: int = 11) -> Ended:
    return Ended(
        attempt, signal=signal, restored=True, cause="crash", fingerprint=f"crash:{signal}"
    )


def test_the_same_exception_at_the_same_step_twice_is_permanent() -> None:
    assert decide(raised(1, steps=30)).action == "restart"
    decision = decide(raised(1, steps=30), raised(2))
    assert decision.action == "stop"
    assert decision.reason == (
        "attempt 2 ended with exit code 1 (code): a permanent error, ValueError after step 30 for "
        "the second time (attempts 1 and 2) with no new step in between"
    )


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([raised(1, steps=30), raised(2, at=31, steps=1)], id="it-came-further"),
        pytest.param([raised(1, steps=30), raised(2, "KeyError")], id="another-exception"),
        pytest.param([raised(1, steps=30), raised(2, at=20)], id="another-step"),
        pytest.param([raised(1, steps=30), raised(2, changed=True)], id="it-ran-changed"),
        pytest.param(
            [raised(1, steps=30), raised(2, at=36, steps=6), raised(3)], id="it-had-passed-there"
        ),
        pytest.param(
            [raised(1, cause="communication"), raised(2, cause="communication")], id="a-lost-peer"
        ),
        pytest.param([raised(1, cause="storage"), raised(2, cause="storage")], id="a-full-disk"),
        pytest.param([crashed(1), crashed(2)], id="no-exception"),
    ],
)
def test_what_is_not_permanent(history: list[Ended]) -> None:
    assert decide(*history).action == "restart"


def test_a_preemption_in_between_does_not_hide_a_permanent_error() -> None:
    decision = decide(raised(1, steps=30), preempted(2), raised(3))
    assert decision.action == "stop"
    assert "attempts 1 and 3" in decision.reason


def test_a_preemption_burns_no_budget_of_crashes_nor_they_its() -> None:
    history: list[Ended] = []
    for number in range(1, 10, 3):
        history += [crashed(number), preempted(number + 1), preempted(number + 2)]
    assert decide(*history[:4]).action == "restart"  # three crashes at the most
    assert decide(*history[:7]).action == "restart"
    assert decide(*history[:7], crashed(8)).action == "stop"
    assert decide(*history[:5], preempted(9)).action == "stop"  # its own: four without a step


def test_ends_of_all_kinds_in_a_row_are_bounded_too() -> None:
    history = [crashed(number, signal=number) for number in range(1, 11)]
    assert decide(*history[:9]).action == "restart"
    assert "ended in different ways" in decide(*history).reason


def test_a_cause_has_its_own_treatment() -> None:
    policy = Policy(
        causes={
            "data": Treatment(action="stop"),
            "numeric": Treatment(action="rewind", initial=0.0),
            "out_of_memory": Treatment(environment={"MICRO_BATCH": "/2"}, max_restarts=1),
        }
    )
    assert decide(raised(1, cause="data", steps=9), policy=policy) == Decision(
        "stop", 0.0, "attempt 1 ended with exit code 1 (data): the policy stops after data"
    )
    rewound = decide(raised(1, cause="numeric", steps=9), policy=policy)
    assert rewound.action == "rewind"
    assert "from a snapshot before it" in rewound.reason
    for rewinds, action in ((2, "rewind"), (3, "stop"), (4, "stop")):
        ended = msgspec.structs.replace(raised(5, cause="numeric", steps=9), rewinds=rewinds)
        assert decide(ended, policy=policy).action == action
    ended = msgspec.structs.replace(raised(5, cause="numeric", steps=9), rewinds=3)
    assert decide(ended, policy=policy).reason == (
        "attempt 5 ended with exit code 1 (numeric): it has gone back 3 times, and max_rewinds is 3"
    )
    first = raised(1, cause="out_of_memory", steps=9)
    assert decide(first, policy=policy).environment == {"MICRO_BATCH": "/2"}
    again = [raised(2, cause="out_of_memory", changed=True, at=n) for n in (9, 10)]
    assert decide(first, again[0], policy=policy).action == "restart"
    assert decide(first, *again, policy=policy).action == "stop"
    assert decide(crashed(1), policy=policy).action == "restart"


def test_on_errors_names_the_exceptions_that_are_tried_again() -> None:
    policy = Policy(on_errors=("TimeoutError", "ConnectionReset"))
    assert decide(raised(1, "TimeoutError"), policy=policy).action == "restart"
    lost = raised(1, "ConnectionResetError", cause="communication")
    assert decide(lost, policy=policy).action == "restart"
    own = raised(1, "mine.Late", cause="code")
    derived = msgspec.structs.replace(own, kinds=("mine.Late", "TimeoutError"))
    assert decide(derived, policy=policy).action == "restart"
    refused = decide(own, policy=policy)
    assert refused.action == "stop"
    assert "mine.Late is none of on_errors (TimeoutError, ConnectionReset)" in refused.reason
    # What is listed is worth its whole budget, at the same step too.
    late = [raised(number, "TimeoutError", cause="code") for number in (1, 2, 3, 4)]
    assert decide(*late[:3], policy=policy).action == "restart"
    assert "--max-restarts is 3" in decide(*late, policy=policy).reason
    # What is no exception has its cause's treatment; a cause can be named as well.
    assert decide(crashed(1), policy=policy).action == "restart"
    assert decide(raised(1), policy=Policy(on_errors=("code",))).action == "restart"


@pytest.mark.parametrize(
    ("before", "wanted", "after", "says"),
    [
        ("32", "/2", "16", "MICRO_BATCH 32 → 16"),
        ("3", "/2", "1", "MICRO_BATCH 3 → 1"),
        ("1", "/2", None, "MICRO_BATCH stays 1"),
        ("4", "*2", "8", "MICRO_BATCH 4 → 8"),
        ("auto", "/2", None, "MICRO_BATCH is 'auto', which is no whole number: left alone"),
        (None, "/2", None, "MICRO_BATCH is not set: left alone"),
        (None, "8", "8", "MICRO_BATCH was unset → 8"),
        ("9", "/tmp/x", "/tmp/x", "MICRO_BATCH 9 → /tmp/x"),
    ],
)
def test_the_environment_of_the_next_attempt(
    before: str | None, wanted: str, after: str | None, says: str
) -> None:
    environ = {} if before is None else {"MICRO_BATCH": before}
    changed, said = change(environ, {"MICRO_BATCH": wanted})
    assert changed == ({} if after is None else {"MICRO_BATCH": after})
    assert said == says


endings = st.builds(
    Ended,
    attempt=st.integers(1, 50),
    code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    restored=st.booleans(),
    steps=st.integers(0, 3),
    asked_to_stop=st.booleans(),
    cause=st.sampled_from(["code", "data", "crash", "preempted", "storage", "done"]),
    fingerprint=st.sampled_from(["a", "b", "c"]),
    error=st.sampled_from(["", "ValueError: x"]),
    at=st.integers(0, 2),
)
policies = st.builds(
    Policy,
    max_restarts=st.integers(0, 6),
    initial=st.floats(0, 10),
    factor=st.floats(1, 4),
    cap=st.floats(0, 600),
    jitter=st.floats(0, 1),
    causes=st.fixed_dictionaries(
        {}, optional={"data": st.just(Treatment(max_restarts=1)), "code": st.just(Treatment(cap=9))}
    ),
)
draws = st.floats(0, 1, exclude_max=True)


@given(st.lists(endings, min_size=1, max_size=12), policies, draws)
def test_delays_stay_in_bounds_and_every_decision_has_a_reason(
    history: list[Ended], policy: Policy, draw: float
) -> None:
    decision = decide(*history, policy=policy, draw=draw)
    treatment = policy.of(history[-1].cause)
    assert decision.action in ("restart", "stop")
    assert decision.reason
    assert 0.0 <= decision.delay <= treatment.cap * (1.0 + treatment.jitter)
    if decision.action == "stop" or history[-1].steps:
        assert decision.delay == 0.0


@given(st.lists(endings, min_size=1, max_size=60), policies)
def test_never_more_restarts_in_a_row_than_the_budget(endings: list[Ended], policy: Policy) -> None:
    """Lived through: every attempt ends as drawn until the policy stops. Nothing but a new step
    gives restarts back, whatever time has passed."""
    granted: dict[tuple[str, bool], int] = {}
    for count in range(1, len(endings) + 1):
        last = endings[count - 1]
        now = 1e9 * count
        if last.steps:
            granted.clear()
        if decide_restart(now, endings[:count], policy, 0.5).action == "stop":
            return
        if last.steps:
            continue
        budget = policy.of(last.cause).max_restarts
        key = (last.fingerprint, last.restored)
        granted[key] = granted.get(key, 0) + 1
        assert granted[key] <= budget
        since = [e for e in endings[:count] if e.cause not in EXEMPT]
        if last.cause not in EXEMPT:
            newest = next((n for n, e in enumerate(reversed(since)) if e.steps), len(since))
            alike = [e for e in since[len(since) - newest :] if e.restored == last.restored]
            assert len(alike) <= OF_ALL_KINDS * budget


@given(st.lists(endings, max_size=8), draws)
def test_a_confirmed_permanent_error_stops_whatever_the_budget(
    before: list[Ended], draw: float
) -> None:
    patient = Policy(max_restarts=10**6)
    first = raised(len(before) + 1, steps=3)
    history = [*before, first, raised(len(before) + 2)]
    decision = decide(*history, policy=patient, draw=draw)
    assert decision.action == "stop"
    assert "permanent error" in decision.reason


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
