"""The file in which a training says what it did: the only witness of the race.

A line is `KIND TIME PID …`: `begun` when a process begins, `step N DATA LOSS` for each completed
step with a digest of its samples and the bits of its loss, `ended WEIGHTS`, `note TEXT`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple


class Step(NamedTuple):
    at: float
    pid: int
    number: int
    data: str
    loss: str


class StepLog(NamedTuple):
    """`begun`: when each process's first line ran. `weights`: a digest, None before the end."""

    begun: dict[int, float]
    steps: list[Step]
    weights: str | None
    notes: list[str]

    def attempts(self) -> list[list[Step]]:
        """The steps of each process that trained, in turn."""
        return [list(steps) for _, steps in groupby(self.steps, key=lambda step: step.pid)]


def parse(text: str) -> StepLog:
    """A last line without its end is not there yet."""
    log = StepLog({}, [], None, [])
    for line in text[: text.rfind("\n") + 1].splitlines():
        kind, at, pid, *rest = line.split(" ", 3)
        match kind:
            case "begun":
                log.begun[int(pid)] = float(at)
            case "step":
                number, data, loss = rest[0].split()
                log.steps.append(Step(float(at), int(pid), int(number), data, loss))
            case "note":
                log.notes.extend(rest)
            case "ended":
                log = log._replace(weights=rest[0])
    return log


def first_difference(steps: Iterable[Step], reference: Iterable[Step]) -> int | None:
    """The lowest step of which some execution had other samples or another loss than in the
    undisturbed run; None where all of them are the same."""
    known = {step.number: (step.data, step.loss) for step in reference}
    other = [step.number for step in steps if known.get(step.number) != (step.data, step.loss)]
    return min(other, default=None)
