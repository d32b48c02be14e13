"""What to do after an attempt has ended: a pure decision that returns its reason.

No clock, no randomness, no process table: `now` and `draw` are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

MOST_DOUBLINGS = 64
"""Of the delay: far beyond any cap, and no overflow after that."""


class Policy(msgspec.Struct, frozen=True):
    """`max_restarts`: restarts in a row without a new step in between. Backoff in seconds."""

    max_restarts: int = 3
    initial: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.25


class Ended(msgspec.Struct, frozen=True):
    """How one attempt ended. `restored`: it got as far as training; `steps`: how many it
    completed that no attempt before it had."""

    attempt: int
    code: int | None = None
    signal: int | None = None
    restored: bool = False
    steps: int = 0
    asked_to_stop: bool = False


class Decision(msgspec.Struct, frozen=True):
    """`action` is "restart" or "stop"; `delay` in seconds."""

    action: str
    delay: float
    reason: str


def describe(ended: Ended) -> str:
    if ended.signal is not None:
        return f"attempt {ended.attempt} was ended by signal {ended.signal}"
    return f"attempt {ended.attempt} ended with exit code {ended.code}"


def decide_restart(
    now: float, history: Sequence[Ended], policy: Policy, draw: float = 0.5
) -> Decision:
    """Decide on the newest of `history` (oldest first). `draw` in [0, 1) spreads the delay.

    A step that no attempt had completed before refills the budget. Attempts that died before they
    had restored do not burn it (rule 14: recovering again changes nothing), but as many of them in
    a row end the run. The first restart after progress comes at once; then exponential backoff
    with jitter.
    """
    last = history[-1]
    what = describe(last)
    if last.asked_to_stop:
        return Decision("stop", 0.0, f"{what} after it was asked to stop")
    if last.code == 0:
        return Decision("stop", 0.0, f"{what}: done")
    if last.code in (126, 127) and not last.restored:
        return Decision("stop", 0.0, f"{what}: the command cannot be run")
    burnt = idle = 0
    for ended in reversed(history):
        if ended.steps:
            break
        if ended.restored:
            burnt += 1
        else:
            idle += 1
    since = burnt + idle
    for count, kind in ((burnt, "without a new step"), (idle, "before training began")):
        if count > policy.max_restarts:
            return Decision(
                "stop",
                0.0,
                f"{what}; {count} attempts in a row ended {kind}, "
                f"and --max-restarts is {policy.max_restarts}",
            )
    if last.steps and policy.max_restarts == 0:
        return Decision("stop", 0.0, f"{what}; --max-restarts is 0")
    if since == 0:
        return Decision("restart", 0.0, f"{what} after {_steps(last.steps)}: at once")
    delay = min(policy.cap, policy.initial * policy.factor ** min(since - 1, MOST_DOUBLINGS))
    delay *= 1.0 + policy.jitter * (2.0 * draw - 1.0)
    return Decision(
        "restart", delay, f"{what} without a new step ({since} in a row): in {delay:.1f} s"
    )


def _steps(count: int) -> str:
    return "1 new step" if count == 1 else f"{count} new steps"
