"""Learning rates after a restore: what the optimizer has, what its scheduler says, what was saved.

Pure. Owns which of them must agree, and the refusal with both values. A script may set rates by
hand beside a scheduler; so the two are held against each other only where they agreed in the
snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from walrecover.values import bits, shown


class Schedule(NamedTuple):
    """One scheduler and its optimizer, by their names.

    `rates`: of the optimizer's parameter groups. `last`: the rates the scheduler set last, None
    where it keeps none. `steps`: its own count. `groups`: for how many parameter groups it has a
    base rate, None where it has none.
    """

    scheduler: str
    optimizer: str
    rates: tuple[float, ...]
    last: tuple[float, ...] | None
    steps: int | None
    groups: int | None


def disagreements(now: Schedule, saved: Schedule | None) -> Iterator[str]:
    """What does not fit, a sentence each. `saved`: what the snapshot has of both; None where it
    lacks one of them."""
    if saved is not None and saved.steps is not None and now.steps != saved.steps:
        yield (
            f"{now.scheduler} stands at schedule step {now.steps}, and stood at {saved.steps} when "
            f"the snapshot was taken"
        )
    if saved is not None and not _equal(now.rates, saved.rates):
        yield (
            f"the learning rate of {now.optimizer} is {_said(now.rates)}, and was "
            f"{_said(saved.rates)} when the snapshot was taken"
        )
    if now.groups is not None and now.groups != len(now.rates):
        yield (
            f"{now.scheduler} has rates for {now.groups} parameter groups, and {now.optimizer} has "
            f"{len(now.rates)}"
        )
    elif now.last is not None and not _equal(now.last, now.rates) and _agreed(saved):
        yield (
            f"the learning rate of {now.optimizer} is {_said(now.rates)}, and {now.scheduler} has "
            f"set {_said(now.last)}"
        )


def _agreed(saved: Schedule | None) -> bool:
    return saved is None or saved.last is None or _equal(saved.last, saved.rates)


def _equal(one: Sequence[float], other: Sequence[float]) -> bool:
    return list(map(bits, one)) == list(map(bits, other))


def _said(rates: Sequence[float]) -> str:
    return ", ".join(shown(rate) for rate in rates)
