"""Whatever the history and the rules: what recovery may need stays (rule 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from hypothesis import event, given
from hypothesis import strategies as st

from tests.support.protocol import attempt, committed, retirement
from walrecover import entries as model
from walrecover.entries import Entry, SnapshotRef
from walrecover.retention import Best, Rules, Values, decide

NOW = 100.0


class Case(NamedTuple):
    entries: list[Entry]
    rules: Rules
    values: Values
    verified: frozenset[str]
    files: Callable[[SnapshotRef], frozenset[str] | None]

    def decided(self, entries: list[Entry]) -> list[SnapshotRef]:
        seen = decide(
            entries, self.rules, now=NOW, values=self.values, verified=self.verified,
            files=self.files,
        )  # fmt: skip
        return [one.commit.snapshot for one in seen if not one.kept]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A few attempts with snapshots, some retired, from any base; two lines of shared files."""
    entries: list[Entry] = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        bases = [None, *(c.snapshot for c in model.candidates(entries))] if entries else [None]
        base = draw(st.sampled_from(bases[:1] if number == 1 else bases))
        entries.append(attempt(number, base))
        first = base.step + 1 if base else 1
        for step in sorted(draw(st.sets(st.integers(first, first + 12), max_size=7))):
            made = committed(step, number)
            entries.append(msgspec.structs.replace(made, at=draw(st.floats(0, NOW))))
        live = [c.snapshot for c in model.candidates(entries)]
        if len(live) > 3 and draw(st.booleans()):
            entries.append(retirement(number, *draw(st.sets(st.sampled_from(live[3:])))))
    refs = [c.snapshot for c in model.commits(entries)]
    mostly = st.sampled_from([True, True, True, False])
    good = draw(st.lists(mostly, min_size=len(refs), max_size=len(refs)))
    kinds = st.sampled_from(draw(st.sampled_from([["odd", "odd", "even"], ["own", None]])))
    lines = {ref.manifest: draw(kinds) for ref in refs}

    def files(ref: SnapshotRef) -> frozenset[str] | None:
        line = lines[ref.manifest]
        return None if line is None else frozenset({ref.name if line == "own" else line, ref.name})

    steps = sorted({c.snapshot.step for c in model.candidates(entries)})
    values = {"loss": {step: draw(st.floats(allow_nan=False)) for step in steps}}
    ways: st.SearchStrategy[tuple[Best, ...]] = st.sampled_from(
        [(), (Best("loss", "min"),), (Best("loss", "max"),)]
    )
    rules = Rules(
        keep_last=draw(st.integers(0, 5)),
        keep_every=draw(st.none() | st.integers(1, 9)),
        best=draw(ways) if steps else (),
        pins=frozenset(draw(st.sets(st.sampled_from(steps), max_size=2))) if steps else frozenset(),
        younger_than=draw(st.none() | st.floats(0, NOW)),
    )  # fmt: skip
    proven = frozenset(ref.manifest for ref, is_good in zip(refs, good, strict=True) if is_good)
    return Case(entries, rules, values, proven, files)


def after(case: Case, gone: list[SnapshotRef]) -> list[Entry]:
    return [*case.entries, retirement(9, *gone)] if gone else case.entries


@given(cases())
def test_p10_two_that_verify_and_share_no_file_remain(case: Case) -> None:
    gone = case.decided(case.entries)
    event(f"something goes: {bool(gone)}")
    if not gone:
        return
    listed = [
        case.files(c.snapshot)
        for c in model.candidates(after(case, gone))
        if c.snapshot.manifest in case.verified
    ]
    whole = [files for files in listed if files is not None]
    assert any(one.isdisjoint(other) for n, one in enumerate(whole) for other in whole[n + 1 :])


@given(cases())
def test_p10_the_base_and_what_rules_keep_remain(case: Case) -> None:
    gone = {ref.manifest for ref in case.decided(case.entries)}
    newest = model.newest_attempt(case.entries)
    assert newest is not None
    live = [c.snapshot for c in model.candidates(case.entries)]
    own = [ref for ref in live if ref.nonce == newest.nonce]
    if not any(ref.manifest in case.verified for ref in own):
        assert gone == set()
    assert gone.isdisjoint(ref.manifest for ref in live[: max(2, case.rules.keep_last)])
    assert gone.isdisjoint(ref.manifest for ref in live if ref.step in case.rules.pins)
    left = [ref for ref in live if ref.manifest not in gone]
    if case.rules.keep_every:
        every = case.rules.keep_every
        assert {ref.step // every for ref in left} == {ref.step // every for ref in live}
    assert left[:1] == live[:1]


@given(cases())
def test_what_was_pruned_stays_as_it_is(case: Case) -> None:
    gone = case.decided(case.entries)
    assert case.decided(after(case, gone)) == []
    assert set(gone) <= {c.snapshot for c in model.commits(case.entries)}
    assert model.retired(case.entries).isdisjoint(ref.manifest for ref in gone)
