"""The comparison of a resumed history with the one before it, step after step, to its verdict.

Pure. Owns what a verdict follows from. Where the older history comes from, and who hears the
verdict, are the callers': the session while it trains, `resumes` from a journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from walrecover.entries import AttemptEntry, Entry, attempts
from walrecover.events import ResumeDiverged, ResumeUnproven, ResumeVerified
from walrecover.tiers import EXACT, Ground
from walrecover.twins import (
    Difference,
    Facts,
    differences,
    objects_that_differ,
    scalars_that_differ,
)
from walrecover.verdicts import Verdict


class Past(NamedTuple):
    """One execution of a step before the resume, and the attempt that made it."""

    attempt: int
    facts: Facts
    state: Mapping[str, bytes] = {}


class Proof:
    """One resume of one rank. `past`: what was done before, by step; `used`: the generators that
    were drawn from; `base`: the step it resumed after.

    The first difference ends the comparison: what follows from it is no news. Where the attempt
    began from the beginning again (`anew`) nothing was restored that could be other than it was: a
    difference says that the script does not begin alike twice, and is no divergence.
    """

    def __init__(
        self,
        past: Mapping[int, Past],
        *,
        base: int = 0,
        anew: bool = False,
        ground: Ground = EXACT,
        used: frozenset[str] = frozenset(),
        restored: bytes | None = None,
    ) -> None:
        self.past, self.base, self.ground, self.used = past, base, ground, used
        self.restored, self.anew = restored, anew
        self.last = max(past, default=0)
        self.first_compared = self.last_compared = 0
        self.states: list[int] = []
        self.diverged: ResumeDiverged | None = None
        self.unlike = ""
        self._passed = False
        self._awaited: set[int] = set()

    def restored_other(self, found: Difference) -> ResumeDiverged | None:
        """The state given back is not the one that was saved."""
        return self._diverge(self.base, found, 0)

    def completed(self, step: int, facts: Facts) -> ResumeDiverged | None:
        """A step was executed again; what it differs in, if it is the first to differ."""
        past = self.past.get(step)
        self._passed = self._passed or step > self.last
        if past is None or self._is_told:
            return None
        ground = self.ground
        found = differences(
            past.facts,
            facts,
            self.used,
            compared=ground.compared,
            bound=ground.bound,
            common=True,
        )
        if one := next(found, None):
            return self._diverge(step, one, past.attempt)
        self.first_compared = self.first_compared or step
        self.last_compared = step
        return None

    def arrived(self, step: int, values: Mapping[str, float]) -> ResumeDiverged | None:
        """Scalars of a step have come from a device."""
        past = self.past.get(step)
        if past is None or self._is_told or "scalars" not in self.ground.compared:
            return None
        bound = self.ground.bound
        found = scalars_that_differ(past.facts.scalars, values, bound=bound, common=True)
        one = next(found, None)
        return self._diverge(step, one, past.attempt) if one else None

    def expects(self, step: int) -> None:
        """The whole state of a step is being captured: it will be told, or that there is none."""
        if step in self.past:
            self._awaited.add(step)

    def captured(self, step: int, state: Mapping[str, bytes]) -> ResumeDiverged | None:
        """The whole state of a step was captured; empty where that came to nothing."""
        self._awaited.discard(step)
        past = self.past.get(step)
        if past is None or self._is_told or not self.ground.states:
            return None
        if not past.state.keys() & state.keys():
            return None
        if one := next(objects_that_differ(past.state, state), None):
            return self._diverge(step, one, past.attempt)
        if self.states[-1:] != [step]:
            self.states.append(step)
        return None

    @property
    def _is_told(self) -> bool:
        return self.diverged is not None or bool(self.unlike)

    def _diverge(self, step: int, one: Difference, attempt: int) -> ResumeDiverged | None:
        if self.anew:
            self.unlike = (
                f"it began from the beginning again, and step {step} was another one: {one.what} "
                f"was {one.before} in attempt {attempt}, is {one.after}"
            )
            return None
        self.diverged = ResumeDiverged(
            step=step,
            what=one.what,
            before=one.before,
            after=one.after,
            attempt=attempt,
            tier=self.ground.tier,
            why=self.ground.why,
            bound=self.ground.bound,
        )
        return self.diverged

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to compare: what belongs to the last step comes behind it."""
        return self._is_told or not self.past or (self._passed and not self._awaited)

    def verdict(self, missing: str = "") -> Verdict:
        """What is known now. `missing`: why there is less of the past than there was."""
        if self.diverged is not None:
            return self.diverged
        if self.unlike or missing:
            return ResumeUnproven(reason=self.unlike or missing)
        if not self.last_compared and self.restored is None:
            reason = "no step that was done before has been done again, and no state was compared"
            return ResumeUnproven(reason=reason)
        return ResumeVerified(
            base=self.base,
            tier=self.ground.tier if self.last_compared else "exact",
            from_step=self.first_compared,
            to_step=self.last_compared,
            restored=self.restored,
            states=tuple(self.states),
            why=self.ground.why if self.last_compared else (),
            bound=self.ground.bound if self.last_compared else 0.0,
        )


def used_generators(past: Iterable[Facts]) -> frozenset[str]:
    """Those that moved in some step. The first step of an attempt names all, and tells nothing."""
    return frozenset(name for facts in past if not facts.opening for name in facts.rng)


def predecessors(
    entries: Iterable[Entry], number: int, diverged: frozenset[int]
) -> Iterator[AttemptEntry]:
    """The attempts whose steps an attempt repeats, newest first.

    It is compared with what it replaces: the newest execution of each step. Behind an attempt that
    itself diverged, began anew or left out samples on purpose lies another history, which this one
    need not equal: nobody is told twice of one divergence.
    """
    known = [entry for entry in attempts(list(entries)) if entry.number <= number]
    if not known or known[-1].number != number:
        return
    for entry, older in pairwise(reversed(known)):
        if (entry.number != number and entry.number in diverged) or _turns(entry, older):
            return
        yield older


def _turns(entry: AttemptEntry, older: AttemptEntry) -> bool:
    """Whether the attempt's history was meant to be another one than that of the one before it."""
    plan = entry.plan
    return plan.fresh or plan.rewind is not None or plan.skips != older.plan.skips
