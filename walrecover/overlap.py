"""Where the histories of two attempts overlap, and what the journal says of it afterwards.

Pure: streams come through an argument. Owns which steps are held against which, offline and
while a resumed run trains; how two executions compare is `twins`', what follows from it `proof`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from walrecover import entries as model
from walrecover import lineage, tiers
from walrecover.entries import AttemptEntry, Entry
from walrecover.events import (
    ResumeDiverged,
    ResumeUnproven,
    ResumeVerified,
    ScalarsArrived,
    ShardsWritten,
    StepCompleted,
)
from walrecover.proof import Past, Proof, predecessors, used_generators
from walrecover.state import RunState, StreamKey, StreamRecord
from walrecover.twins import Facts, facts_of, with_scalars
from walrecover.verdicts import Verdict

MOST_STEPS = 200_000
"""Of the past are kept while a run trains; steps behind them are not compared, and it is said."""

Steps = Callable[[StreamKey, int, int], Iterable[Any]]
"""The events of a stream from its first of a step to the last that belongs to another, in order."""


class Judged(NamedTuple):
    """The verdict on one resume of one rank. `journaled`: the session had come to it itself."""

    attempt: int
    nonce: str
    rank: int
    verdict: Verdict
    journaled: bool


def executions(
    events: Iterable[Any], first: int, last: int, opening: int
) -> Iterator[tuple[int, Facts, Any]]:
    """(step, facts, state) of the steps in a span; the state is {} unless it was captured.

    One that comes later for the same step has more in it: its scalars, its state. `opening`: the
    first step of the attempt.
    """
    known: dict[int, tuple[Facts, Mapping[str, bytes]]] = {}
    for event in events:
        step = getattr(event, "step", 0)
        if isinstance(event, StepCompleted):
            if first <= step <= last:
                known[step] = facts_of(event, opening=step == opening), {}
                yield (step, *known[step])
        elif step not in known:
            continue
        elif isinstance(event, ScalarsArrived):
            facts, state = known[step]
            known[step] = with_scalars(facts, event.scalars), state
            yield (step, *known[step])
        elif isinstance(event, ShardsWritten) and event.state and not event.end:
            known[step] = known[step][0], event.state
            yield (step, *known[step])


class History(NamedTuple):
    """What a resume is held against. `missing`: why some of it is not there, or "". `worlds`: how
    many ranks made it, and what lies between the two histories."""

    past: dict[int, Past]
    used: frozenset[str]
    before: Any = None
    missing: str = ""
    worlds: frozenset[int] = frozenset()

    def lying(self, entries: Sequence[Entry], number: int) -> History:
        """With the worlds that lie between it and an attempt."""
        made = {one.attempt for one in self.past.values()}
        found = [lineage.worlds_between(entries, one, number) for one in made]
        return self._replace(worlds=self.worlds.union(*found))


def history(
    before: Iterable[tuple[AttemptEntry, StreamRecord | None]],
    steps: Steps,
    writer: str,
    base: int,
    limit: int = MOST_STEPS,
) -> History:
    """The newest execution of each step behind `base`. `before`: the attempts that are replaced,
    newest first (`proof.predecessors`), each with what its stream says, None where it has none."""
    past: dict[int, Past] = {}
    worlds: set[int] = set()
    code, missing = None, ""
    for entry, record in before:
        if record is None:
            continue
        if record.losses:
            missing = missing or f"the journal is damaged: {record.losses[0]}"
        spans = [(max(first, base + 1), last) for first, last in record.steps if last > base]
        if spans and code is None and record.begun is not None:
            code = record.begun.code
        key = StreamKey(entry.number, entry.nonce, writer)
        for first, last in spans:
            last = min(last, base + limit)
            opening = record.steps[0][0]
            for step, facts, state in executions(steps(key, first, last), first, last, opening):
                if step not in past or past[step].attempt == entry.number:
                    past[step] = Past(entry.number, facts, state)
                    if record.begun is not None and record.begun.code is not None:
                        worlds.add(record.begun.code.world)
    used = used_generators(one.facts for one in past.values())
    return History(past, used, code, missing, frozenset(worlds))


# --- from the journal ---------------------------------------------------------------------------


def judge(state: RunState, steps: Steps) -> list[Judged]:
    """What proves each resume of a run, by attempt and rank, oldest first.

    What a session has journaled of it stands, unless the streams say worse. An attempt that
    completed no step has nothing to be proven.
    """
    found: list[Judged] = []
    diverged: set[int] = set()
    for entry in model.attempts(state.entries):
        records = state.of_attempt(entry.number, entry.nonce)
        for writer, record in sorted(records.items(), key=lambda item: _rank(item[0])):
            if _rank(writer) < 0 or not (record.steps or record.proofs) or entry.number == 1:
                continue
            told = _told(record)
            verdict = told
            if not isinstance(told, ResumeDiverged):
                verdict = _stronger(told, _compared(state, entry, writer, steps, diverged))
            if verdict is None:
                continue
            if isinstance(verdict, ResumeDiverged):
                diverged.add(entry.number)
            journaled = verdict is told
            found.append(Judged(entry.number, entry.nonce, _rank(writer), verdict, journaled))
    return found


def _told(record: StreamRecord) -> Verdict | None:
    """The session's own last word, unless it has said worse."""
    worse = [one for one in record.proofs if isinstance(one, ResumeDiverged)]
    return next(iter(worse or record.proofs[-1:]), None)


def _rank(writer: str) -> int:
    prefix, _, number = writer.partition("rank-")
    return int(number) if not prefix and number.isdigit() else -1


def _stronger(told: Verdict | None, compared: Verdict | None) -> Verdict | None:
    """The worse of the two; of two good ones that which says more, with the state's digest."""
    if compared is None or isinstance(compared, ResumeDiverged) or told is None:
        return compared or told
    if isinstance(told, ResumeUnproven):
        return compared if isinstance(compared, ResumeVerified) else told
    if isinstance(compared, ResumeVerified) and isinstance(told, ResumeVerified):
        return told if told.to_step >= compared.to_step else _with_state(compared, told)
    # The session had seen the past that is missing now; or it had only seen the state.
    return told if isinstance(told, ResumeVerified) and told.to_step else compared


def _with_state(compared: ResumeVerified, told: ResumeVerified) -> ResumeVerified:
    fields = {name: getattr(compared, name) for name in compared.__struct_fields__}
    return ResumeVerified(**{**fields, "restored": told.restored, "at": told.at})


def _compared(
    state: RunState, entry: AttemptEntry, writer: str, steps: Steps, diverged: set[int]
) -> Verdict | None:
    """The verdict from the streams alone; None where they have nothing to say of it: the attempt
    was to be another history, or nothing was done twice and the session has the state's digest."""
    key = StreamKey(entry.number, entry.nonce, writer)
    record = state.records[key]
    base = entry.plan.base.step if entry.plan.base else 0
    older = list(predecessors(state.entries, entry.number, frozenset(diverged)))
    if not older or not record.steps:
        return None
    own, opening = record.steps[-1][1], record.steps[0][0]
    pairs = [(one, state.records.get(StreamKey(one.number, one.nonce, writer))) for one in older]
    found = history(pairs, steps, writer, base, max(0, own - base))
    found = found.lying(state.entries, entry.number)
    proof = Proof(
        found.past,
        base=base,
        anew=entry.plan.base is None,
        ground=tiers.ground(
            found.before, record.begun.code if record.begun else None, worlds=found.worlds
        ),
        used=found.used,
    )
    missing = found.missing or _gone(state, entry, pairs, _rank(writer))
    last = max(found.past, default=base)
    if last > base:
        for step, facts, captured in executions(
            steps(key, base + 1, last), base + 1, last, opening
        ):
            proof.completed(step, facts)
            if captured:
                proof.captured(step, captured)
    if not found.past and not missing:
        if proof.anew:
            return None  # it began from the beginning, after attempts that made no step
        reason = "no step was done twice, and the journal has no word of the state given back"
        return None if record.proofs else ResumeUnproven(reason=reason)
    return proof.verdict(missing)


def _had(state: RunState, entry: AttemptEntry, rank: int) -> bool:
    """Whether an attempt had such a rank, as far as its other ranks know."""
    records = state.of_attempt(entry.number, entry.nonce).values()
    worlds = [r.begun.world for r in records if r.begun is not None and r.begun.rank is not None]
    return rank < max(worlds, default=rank + 1)


def _gone(
    state: RunState,
    entry: AttemptEntry,
    pairs: list[tuple[AttemptEntry, StreamRecord | None]],
    rank: int,
) -> str:
    """Which stream must have been there, and is not: of an attempt that has committed, or that
    this one resumes from, and that had such a rank."""
    base = entry.plan.base
    committed = {(c.snapshot.attempt, c.snapshot.nonce) for c in model.commits(state.entries)}
    for one, record in pairs:
        must = (one.number, one.nonce) in committed and _had(state, one, rank)
        if base is not None and one.number < base.attempt:
            continue
        if record is None and must:
            return f"the journal of attempt {one.number} is missing"
    return ""
