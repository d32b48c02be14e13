"""What to do after an attempt has ended: a pure decision that returns its reason.

Owns the policy's values and the decision; how a policy is written down is `policy_file`'s. No
clock, no randomness, no process table: `now` and `draw` are arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from walrecover.causes import Pattern
from walrecover.wording import signal_name

Action = Literal["restart", "stop", "rewind"]

SCALE = re.compile(r"([*/])(\d+)", re.ASCII)
"""Of a variable's value; by anything else it is replaced."""

ON_DIVERGENCE = "WALRECOVER_ON_DIVERGENCE"
AFTER_DIVERGENCE = ("go_on", "stop")
"""What a session does once a resume has proven to be another history than the one before."""

MOST_DOUBLINGS = 64
"""Of the delay: far beyond any cap, and no overflow after that."""

OF_ALL_KINDS = 3
"""Failures are counted by fingerprint, and fingerprints may be endless: all of them in a row
without a new step are at most so many times the budget."""

PERMANENT = frozenset({"code", "data", "numeric", "out_of_memory"})
"""Causes that lie in the script, its data or its size: where such an exception comes back at the
same step, it always will. A peer, a disk or a machine may come back."""

EXEMPT = frozenset({"preempted", "node_lost"})
"""What happened to it, not in it: counted apart, and never in the sum of all kinds."""


class Treatment(msgspec.Struct, frozen=True):
    """What follows an end. `max_restarts`: in a row without a new step. Backoff in seconds.

    `on_errors`: of exceptions, only those that one of these regular expressions fits are tried
    again. `environment`: changes for the next attempt, `/2`, `*2`, or a new value. `max_rewinds`:
    in the whole run.
    """

    max_restarts: int = 3
    initial: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.25
    action: Action = "restart"
    on_errors: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    max_rewinds: int = 3


class Policy(Treatment, frozen=True):
    """One treatment for all causes, others for those that are named; the user's own patterns, and
    further files that may hold output."""

    causes: dict[str, Treatment] = {}
    on_divergence: Literal["go_on", "stop"] = "go_on"
    patterns: tuple[Pattern, ...] = ()
    logs: tuple[str, ...] = ()

    def of(self, cause: str) -> Treatment:
        return self.causes.get(cause, self)


class Ended(msgspec.Struct, frozen=True):
    """How one attempt ended. `restored`: it got as far as training; `steps`: how many it
    completed that no attempt before it had.

    `error`, `kinds`: text and type names of the exception that decided its cause; `at`: the last
    step completed where it was raised. `changed`: the attempt ran with another environment, or
    from an older snapshot, than the one before it. `rewinds`: how often the run has gone back.
    """

    attempt: int
    code: int | None = None
    signal: int | None = None
    restored: bool = False
    steps: int = 0
    asked_to_stop: bool = False
    cause: str = ""
    fingerprint: str = ""
    error: str = ""
    kinds: tuple[str, ...] = ()
    at: int = 0
    changed: bool = False
    rewinds: int = 0


class Decision(msgspec.Struct, frozen=True):
    """`delay` in seconds. `environment`: the changes of the treatment, not yet applied."""

    action: Action
    delay: float
    reason: str
    environment: dict[str, str] = {}


def describe(ended: Ended) -> str:
    """What is decided on, in a few words; its evidence is told beside it."""
    why = f" ({ended.cause})" if ended.cause not in ("", "done", "stopped") else ""
    if ended.signal is not None:
        return f"attempt {ended.attempt} was ended by {signal_name(ended.signal)}{why}"
    if ended.code is None:
        return f"attempt {ended.attempt} ended unseen{why}"
    return f"attempt {ended.attempt} ended with exit code {ended.code}{why}"


def decide_restart(
    now: float, history: Sequence[Ended], policy: Policy, draw: float = 0.5
) -> Decision:
    """Decide on the newest of `history` (oldest first). `draw` in [0, 1) spreads the delay.

    A step that no attempt had completed before refills every budget, time never does. Ends are
    counted by their fingerprint. Attempts that died before they had restored do not burn the
    budget of those that trained (rule 14: recovering again changes nothing), but as many of them
    in a row end the run. The first restart after progress comes at once; then exponential backoff
    with jitter.
    """
    last = history[-1]
    treatment = policy.of(last.cause)
    what = describe(last)
    refused = _over(last) or _refused(last, treatment)
    refused = refused or _permanent(history, treatment) or _spent(history, treatment)
    if refused:
        return Decision("stop", 0.0, f"{what}{refused}")
    since = len(_since_progress(history))
    again = "from a snapshot before it, " if treatment.action == "rewind" else ""
    changes = dict(treatment.environment)
    if since == 0:
        reason = f"{what} after {_steps(last.steps)}: {again}at once"
        return Decision(treatment.action, 0.0, reason, changes)
    doublings = min(since - 1, MOST_DOUBLINGS)
    delay = min(treatment.cap, treatment.initial * treatment.factor**doublings)
    delay *= 1.0 + treatment.jitter * (2.0 * draw - 1.0)
    reason = f"{what} without a new step ({since} in a row): {again}in {delay:.1f} s"
    return Decision(treatment.action, delay, reason, changes)


# --- reasons to stop, as the end of a sentence --------------------------------------------------


def _over(last: Ended) -> str:
    """What no policy changes."""
    if last.asked_to_stop:
        return " after it was asked to stop"
    if last.code == 0:
        return ": done"
    if last.cause == "fenced":
        return ": the run was taken over"
    if last.cause == "diverged":
        return ": its resume was not the run before, and the policy stops for that"
    if last.cause == "unusable" or (last.code in (126, 127) and not last.restored):
        return ": the command cannot be run"
    return ""


def _refused(last: Ended, treatment: Treatment) -> str:
    if treatment.action == "stop":
        return f": the policy stops after {last.cause or 'any end'}"
    if treatment.on_errors and last.error and not _is_listed(last, treatment.on_errors):
        return f": {_kind(last)} is none of on_errors ({', '.join(treatment.on_errors)})"
    if treatment.action == "rewind" and last.rewinds >= treatment.max_rewinds:
        most = treatment.max_rewinds
        return f": it has gone back {_times(last.rewinds)}, and max_rewinds is {most}"
    return ""


def _is_listed(last: Ended, on_errors: Sequence[str]) -> bool:
    return last.cause in on_errors or any(
        re.search(pattern, text) for pattern in on_errors for text in (last.error, *last.kinds)
    )


def _permanent(history: Sequence[Ended], treatment: Treatment) -> str:
    """The same exception at the same step a second time, with no new step in between; unless
    somebody has said, by `on_errors`, that this one is worth another try."""
    last = history[-1]
    if last.steps or last.changed or not last.error or last.cause not in PERMANENT:
        return ""
    if treatment.on_errors:  # it is listed there, or it would have been refused
        return ""
    for before in reversed(history[:-1]):
        if (before.fingerprint, before.at) == (last.fingerprint, last.at):
            where = f"after step {last.at}" if last.at else "before the first step"
            return (
                f": a permanent error, {_kind(last)} {where} for the second time (attempts "
                f"{before.attempt} and {last.attempt}) with no new step in between"
            )
        if before.steps or before.changed:
            break
    return ""


def _spent(history: Sequence[Ended], treatment: Treatment) -> str:
    last = history[-1]
    budget = treatment.max_restarts
    allowed = f"and --max-restarts is {budget} (max_attempts {budget + 1})"
    if budget == 0:
        return f", {allowed}"
    if last.steps:
        return ""
    since = _since_progress(history)
    alike = [ended for ended in since if ended.fingerprint == last.fingerprint]
    count = sum(ended.restored == last.restored for ended in alike)
    if count > budget:
        kind = "without a new step" if last.restored else "before training began"
        return f"; {count} attempts in a row ended {kind}, {allowed}"
    others = [e for e in since if e.cause not in EXEMPT and e.restored == last.restored]
    if last.cause not in EXEMPT and len(others) > OF_ALL_KINDS * budget:
        count = len(others)
        return f"; {count} attempts in a row ended in different ways, with no new step, {allowed}"
    return ""


def _since_progress(history: Sequence[Ended]) -> list[Ended]:
    """The ends since the last attempt that completed a new step, newest first."""
    since = []
    for ended in reversed(history):
        if ended.steps:
            break
        since.append(ended)
    return since


def _kind(ended: Ended) -> str:
    return ended.error.partition(":")[0]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _steps(count: int) -> str:
    return "1 new step" if count == 1 else f"{count} new steps"


# --- the environment of the next attempt --------------------------------------------------------


def change(environ: Mapping[str, str], changes: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The variables that get another value, and what to say of all that were to.

    `/2` and `*2` need a whole number, and leave it whole and at least 1; where there is none, the
    variable stays as it is.
    """
    changed: dict[str, str] = {}
    said = []
    for name, wanted in changes.items():
        before = environ.get(name)
        after = _scaled(before, wanted)
        if after is None and before is None:
            said.append(f"{name} is not set: left alone")
        elif after is None:
            said.append(f"{name} is {before!r}, which is no whole number: left alone")
        elif after == before:
            said.append(f"{name} stays {before}")
        else:
            changed[name] = after
            said.append(f"{name} {'was unset' if before is None else f'{before}'} → {after}")
    return changed, ", ".join(said)


def _scaled(before: str | None, wanted: str) -> str | None:
    scale = SCALE.fullmatch(wanted)
    if scale is None:
        return wanted
    if before is None or not re.fullmatch(r"\s*\d+\s*", before):
        return None
    number, by = int(before), int(scale[2])
    return str(max(1, number * by if scale[1] == "*" else number // by))
