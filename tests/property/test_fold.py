"""Rule 11: any interleaving of streams, any replay, the same state."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.support.protocol import attempt, committed, nonce_of, reference
from walrecover import events as ev
from walrecover import state as model
from walrecover.entries import Entry
from walrecover.state import RunState, StreamKey, StreamRecord, fold

Pairs = list[tuple[int, ev.Event | ev.Unknown]]

small = st.integers(1, 12)
moment = st.floats(0.0, 60.0)
event = st.one_of(
    st.builds(ev.StepCompleted, at=moment, step=small, epoch=small),
    st.builds(ev.Resumed, at=moment, step=small),
    st.builds(ev.PlaceReached, at=moment, step=small),
    st.builds(ev.LoopStalled, at=moment, step=small, seconds=moment, commit=st.booleans()),
    st.builds(ev.PaceSet, from_step=small, every=small),
    st.builds(ev.SnapshotCommitted, step=small, manifest=st.sampled_from("abc")),
    st.builds(ev.SnapshotVerified, step=small, manifest=st.sampled_from("abc")),
    st.builds(ev.SnapshotAbandoned, step=small, reason=st.sampled_from("xy")),
    st.builds(ev.SnapshotsRetired, names=st.tuples(st.sampled_from("abc"))),
    st.builds(ev.WorkerExited, pid=small),
    st.builds(ev.RestartDecided, action=st.just("restart"), delay=st.just(0.0), reason=st.just("")),
    st.builds(ev.RunStopped, step=small),
    st.builds(ev.RunFinished, step=small),
    st.builds(ev.PlanFailed, reason=st.just("")),
    st.builds(ev.Unknown, st.just("LaterInvented"), st.just({})),
)
keys = [
    StreamKey(number, nonce_of(number), writer)
    for number in (1, 2, 3)
    for writer in ("rank-0", "rank-1", "supervisor")
]


@st.composite
def a_sequence(draw: st.DrawFn) -> list[Entry]:
    """Up to three attempts, each beginning at some commit made before it, or afresh."""
    entries: list[Entry] = [attempt(1)]
    known = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        if number > 1:
            entries.append(attempt(number, draw(st.sampled_from([None, *known]))))
        for step in sorted(draw(st.sets(small, max_size=3))):
            entries.append(committed(step, number))
            known.append(reference(step, number))
    return entries


streams = st.dictionaries(st.sampled_from(keys), st.lists(event, max_size=8).map(
    lambda events: list(enumerate(events, start=1))
), max_size=6)  # fmt: skip


def everything(state: RunState) -> tuple[object, ...]:
    """The records, and all that is read from them."""
    return (
        state.records,
        state.last_step(),
        state.surviving(),
        state.superseded(),
        state.chain,
        state.candidates,
    )


@st.composite
def deliveries(draw: st.DrawFn, of: Mapping[StreamKey, Pairs]) -> list[tuple[StreamKey, Pairs]]:
    """The streams in pieces, any order between streams, with pieces delivered again."""
    pieces = []
    for key, pairs in of.items():
        cuts = sorted(draw(st.sets(st.integers(0, len(pairs)), max_size=3)))
        ends = [*cuts, len(pairs)]
        begins = [draw(st.integers(0, begin)) for begin in [0, *cuts]]  # from anywhere before
        pieces.append([(key, pairs[a:b]) for a, b in zip(begins, ends, strict=True)])
    mixed = []
    while pieces:
        place = draw(st.integers(0, len(pieces) - 1))
        mixed.append(pieces[place].pop(0))
        if not pieces[place]:
            del pieces[place]
    return mixed


def fold_in_pieces(
    entries: Sequence[Entry],
    of: Mapping[StreamKey, Pairs],
    order: Sequence[tuple[StreamKey, Pairs]],
) -> RunState:
    records = {key: StreamRecord() for key in of}
    for key, pairs in order:
        records = fold(entries, {key: pairs}, copy.deepcopy(records)).records
    return RunState(tuple(entries), records)


@given(a_sequence(), streams, st.data())
def test_any_interleaving_gives_the_same_state(
    entries: list[Entry], of: dict[StreamKey, Pairs], data: st.DataObject
) -> None:
    order = data.draw(deliveries(of))
    assert everything(fold_in_pieces(entries, of, order)) == everything(fold(entries, of))


def test_an_interleaving_that_matters_is_noticed() -> None:
    """The test of the test: one record for all streams, as a fold without rule 11 would have."""
    one, other = keys[0], keys[1]
    of: dict[StreamKey, Pairs] = {
        one: [(1, ev.StepCompleted(step=1)), (2, ev.StepCompleted(step=2))],
        other: [(1, ev.StepCompleted(step=9)), (2, ev.RunStopped(step=9))],
    }

    def mixed(order: Sequence[tuple[StreamKey, Pairs]]) -> RunState:
        return fold((), {one: [pair for _, pairs in order for pair in pairs]})

    forwards = mixed(list(of.items()))
    backwards = mixed(list(reversed(of.items())))
    assert forwards != backwards


@given(a_sequence(), streams, st.randoms(use_true_random=False))
def test_the_order_in_which_streams_are_listed_does_not_matter(
    entries: list[Entry], of: dict[StreamKey, Pairs], random: object
) -> None:
    listed = list(of.items())
    random.shuffle(listed)  # type: ignore[attr-defined]
    assert everything(fold(entries, dict(listed))) == everything(fold(entries, of))


@given(streams, st.data())
def test_a_fold_from_a_kept_record_is_a_full_fold(
    of: dict[StreamKey, Pairs], data: st.DataObject
) -> None:
    """The fold checkpoint: a record goes through its bytes and is gone on with."""
    for key, pairs in of.items():
        middle = data.draw(st.integers(0, len(pairs)))
        kept = fold((), {key: pairs[:middle]}).records[key]
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=StreamRecord)
        assert again == kept
        behind = data.draw(st.integers(0, middle))
        assert fold((), {key: pairs[behind:]}, {key: again}) == fold((), {key: pairs})


@given(streams)
def test_a_fold_leaves_no_trace_in_the_next(of: dict[StreamKey, Pairs]) -> None:
    assert fold((), of) == fold((), of)


@given(a_sequence(), st.dictionaries(
    st.sampled_from(keys[:2] + keys[3:5]), st.lists(small, max_size=12), max_size=4
), st.data())  # fmt: skip
def test_events_are_keyed_by_step_so_that_saying_it_again_changes_nothing(
    entries: list[Entry], said: dict[StreamKey, list[int]], data: st.DataObject
) -> None:
    def numbered(steps: list[int]) -> Pairs:
        return [(lsn, ev.StepCompleted(step=step)) for lsn, step in enumerate(steps, start=1)]

    once = fold(entries, {key: numbered(steps) for key, steps in said.items()})
    repeated = {
        key: numbered(steps + (data.draw(st.lists(st.sampled_from(steps))) if steps else []))
        for key, steps in said.items()
    }
    again = fold(entries, repeated)
    for key, record in once.records.items():
        assert again.records[key].steps == record.steps
    assert everything(again)[1:] == everything(once)[1:]


@given(a_sequence(), st.dictionaries(
    st.sampled_from(keys), st.integers(0, 12), max_size=6
))  # fmt: skip
def test_what_survives_is_exactly_what_rule_11_says(
    entries: list[Entry], reached: dict[StreamKey, int]
) -> None:
    """Every stream completed 1..n; a step survives if its attempt's link holds it."""
    of: dict[StreamKey, Pairs] = {
        key: [(step, ev.StepCompleted(step=step)) for step in range(1, n + 1)]
        for key, n in reached.items()
    }
    state = fold(entries, of)
    completed = {(key.attempt, step) for key, n in reached.items() for step in range(1, n + 1)}
    known = {entry.number for entry in entries if hasattr(entry, "number")}
    on_chain = {
        (link.attempt, step) for link in state.chain for step in range(13) if link.holds(step)
    }
    counted = {
        (link.attempt, step)
        for link, last in state.surviving()
        for step in range(link.base + 1, last + 1)
    }
    assert counted == completed & on_chain
    gone = {
        (int(label[1:].partition("-")[0]), step)
        for label, spans in state.superseded().items()
        for first, last in spans
        for step in range(first, last + 1)
    }
    below_base = {(link.attempt, step) for link in state.chain for step in range(link.base + 1)}
    assert gone - below_base == {c for c in completed - on_chain if c[0] in known} - below_base
    assert model.fold(entries, of) == state
