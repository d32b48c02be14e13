"""What is wrong with a place to train in: from facts to findings, each with its remedy. Pure.

Owns `examine` and which findings a preflight shows; facts are gathered by `walrecover.doctor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from walrecover.findings import machine, storage
from walrecover.findings.facts import Facts
from walrecover.findings.finding import Finding
from walrecover.findings.table import CHECKS, FAILURE, NOTE, OK, SAYS, STOPS, WARNING


class Preflight(NamedTuple):
    """What a run says before its first attempt, and what keeps it from beginning."""

    says: tuple[Finding, ...]
    stops: tuple[Finding, ...]


def examine(facts: Facts) -> list[Finding]:
    """Every finding, in the order of the table. What was not asked has none."""
    found = [*storage.judge(facts), *machine.judge(facts)]
    order = {name: place for place, name in enumerate(CHECKS)}
    return sorted(found, key=lambda finding: order[finding.check])


def preflight(found: Sequence[Finding]) -> Preflight:
    """Only what proves that the run cannot begin may stop it, and then nothing else is said; of
    the rest, what costs the run is a warning, for it may work all the same."""
    bad = [f for f in found if f.level in (WARNING, FAILURE) and CHECKS[f.check].preflight]
    stops = [f for f in bad if f.level == FAILURE and CHECKS[f.check].preflight == STOPS]
    says = [] if stops else [Finding(f.check, WARNING, f.found) for f in bad]
    return Preflight(tuple(says), tuple(stops))


__all__ = [
    "CHECKS",
    "FAILURE",
    "NOTE",
    "OK",
    "SAYS",
    "STOPS",
    "WARNING",
    "Facts",
    "Finding",
    "Preflight",
    "examine",
    "preflight",
]
