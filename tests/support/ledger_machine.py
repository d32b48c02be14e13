"""A model of training over a global order, and a machine that does to it what may happen: steps,
snapshots, crashes, resumes, other numbers of ranks, rewinds, forks.

The model knows what the surviving history consumed, from its own counting. The ledger is told by
events alone, encoded and read as from a journal, and by entries; it must find the same, and that it
is exactly once. Orders, chains and lineages are those of the product.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.protocol import holder
from walrecover import entries as model
from walrecover import events as ev
from walrecover import lineage
from walrecover.consumed import Consumed
from walrecover.entries import (
    AttemptEntry,
    CommitEntry,
    Entry,
    OriginEntry,
    Plan,
    Rejected,
    Skip,
    SnapshotRef,
)
from walrecover.ledger import Book
from walrecover.order import TAILS, Layout
from walrecover.order import kept as nth_kept
from walrecover.tiling import Chapter, Judgement, judge

BATCH = 12
WORLDS = (1, 2, 3, 4)
MOST_SKIPS = 3
DONE: Counter[str] = Counter()
"""How often each rule was done."""


class State(msgspec.Struct):
    """What a snapshot holds of the training: where it is, and what came before."""

    step: int = 0
    epoch: int = 0
    batches: int = 0
    consumed: Counter[tuple[int, int]] = msgspec.field(default_factory=Counter)

    def copy(self) -> State:
        return msgspec.structs.replace(self, consumed=Counter(self.consumed))


class Stream(NamedTuple):
    run: str
    attempt: int
    nonce: str
    rank: int


class Training:
    """The model: runs, their entries and streams, and the living attempt."""

    def __init__(self, length: int, tail: str, world: int) -> None:
        self.layout = Layout(length, BATCH, tail)
        self.run, self.runs = "run-0", 1
        self.entries: dict[str, list[Entry]] = {"run-0": []}
        self.streams: dict[Stream, list[bytes]] = {}
        self.saved: dict[str, State] = {}
        self.state = State()
        self.number, self.world, self.alive = 0, world, False
        self.begin(None, world)

    # -- what happens ---------------------------------------------------------------------------

    def begin(
        self,
        base: SnapshotRef | None,
        world: int,
        skips: tuple[Skip, ...] | None = None,
        rejected: tuple[Rejected, ...] = (),
    ) -> None:
        """A new attempt, of so many ranks."""
        known = self.entries[self.run]
        first = model.origin(known)
        self.number = max([self.number, *([first.snapshot.attempt] if first else [])]) + 1
        inherited = model.skips(known) if skips is None else skips
        entry = AttemptEntry(
            id=f"{self.number}", at=0.0, number=self.number, nonce=f"n{self.number}",
            plan=Plan(base, rejected, False, inherited), holder=holder(),
        )  # fmt: skip
        known.append(entry)
        self.entry, self.world, self.alive = entry, world, True
        self.state = self.saved[base.manifest].copy() if base else State()
        for rank in range(world):
            self.say(
                rank,
                ev.AttemptBegun(
                    run=self.run, attempt=self.number, nonce=entry.nonce, writer=f"rank-{rank}",
                    rank=rank, world=world,
                ),
                ev.DataOpened(
                    source=0, loop=(0, 0), kind="global", length=self.layout.consumed,
                    batch=BATCH, seed=7, world=world,
                ),
            )  # fmt: skip

    def say(self, rank: int, *events: ev.Event) -> None:
        stream = Stream(self.run, self.number, self.entry.nonce, rank)
        self.streams.setdefault(stream, []).extend(ev.encode(event) for event in events)

    def left_out(self, epoch: int) -> tuple[tuple[int, int], ...]:
        """Global batches of a pass that the plan leaves out."""
        skips = [(s.begin, s.end) for s in self.entry.plan.skips if s.epoch == epoch]
        return self.layout.left_out(skips)

    def next_batch(self) -> int | None:
        """The number of the next global batch of the pass; None at its end."""
        number = nth_kept(self.left_out(self.state.epoch), self.state.batches)
        return number if number < self.layout.batches else None

    def step(self, ranks: int | None = None) -> None:
        """A step of all ranks; of the first `ranks` alone, where the others die in it."""
        number = self.next_batch()
        while number is None:
            for rank in range(self.world):
                self.say(rank, ev.PassEnded(step=self.state.step, source=0, epoch=self.state.epoch))
            self.state.epoch, self.state.batches = self.state.epoch + 1, 0
            number = self.next_batch()
        self.state.step += 1
        self.state.batches += 1
        end = self.layout.consumed
        for rank in range(self.world):
            first, last = self.layout.part(number, rank, self.world)
            if rank < (self.world if ranks is None else ranks):
                share = Consumed(
                    0,
                    self.state.epoch,
                    ((first, min(last, end)),) if first < end else (),
                    None,
                    ((max(first, end), last),) if last > end else (),
                )
                self.say(rank, ev.StepCompleted(step=self.state.step, consumed=(share,)))
            for position in range(first, min(last, end)):
                self.state.consumed[self.state.epoch, position] += 1

    def snapshot(self) -> None:
        ref = SnapshotRef(
            self.state.step, self.number, self.entry.nonce,
            f"{self.run}/{self.number}/{self.state.step}",
        )  # fmt: skip
        if ref.manifest not in self.saved:
            self.saved[ref.manifest] = self.state.copy()
            self.entries[self.run].append(CommitEntry(ref.manifest, 0.0, ref))

    def crash(self, ranks: int, lost: int) -> None:
        """In a step that some ranks completed; of each stream the last `lost` events are gone,
        never those before a snapshot."""
        self.step(ranks % self.world)
        durable = self.newest_own()
        for rank in range(self.world):
            events = self.streams[Stream(self.run, self.number, self.entry.nonce, rank)]
            for _ in range(lost):
                last = ev.decode(events[-1])
                if not isinstance(last, ev.StepCompleted | ev.PassEnded) or last.step <= durable:
                    break
                events.pop()
        self.alive = False

    def newest_own(self) -> int:
        return max(
            (c.snapshot.step for c in model.commits(self.entries[self.run])
             if (c.snapshot.attempt, c.snapshot.nonce) == (self.number, self.entry.nonce)),
            default=self.entry.plan.base.step if self.entry.plan.base else 0,
        )  # fmt: skip

    def resume(self, world: int) -> None:
        live = model.candidates(self.entries[self.run])
        self.begin(live[0].snapshot if live else None, world)

    def rewind(self, back: int, world: int) -> None:
        """To an older snapshot, and leave out the positions behind it, through the pass's end or
        where the training stands."""
        live = model.candidates(self.entries[self.run])
        base = live[min(back, len(live) - 1)].snapshot if live else None
        stood, then = self.state, self.saved[base.manifest] if base else State()
        begin = nth_kept(self.left_out(then.epoch), then.batches) * BATCH
        end = self.layout.consumed
        if stood.epoch == then.epoch:
            end = min(end, nth_kept(self.left_out(then.epoch), stood.batches) * BATCH)
        skips = model.skips(self.entries[self.run])
        if begin < end and len(skips) < MOST_SKIPS:
            skips = (*skips, Skip(0, then.epoch, begin, end, "loss is nan"))
        newer = tuple(
            Rejected(c.snapshot.step, c.snapshot.attempt, c.snapshot.manifest, "left behind")
            for c in live[:back]
        )
        self.begin(base, world, skips, newer)

    def fork(self, at: int, world: int) -> None:
        live = model.candidates(self.entries[self.run])
        ref = live[at % len(live)].snapshot
        known = self.entries[self.run]
        history = lineage.history(self.run, known, ref)
        state = self.saved[ref.manifest]
        begin = nth_kept(self.left_out(state.epoch), state.batches) * BATCH
        size = min(BATCH, self.layout.consumed - begin)
        skips = model.skips(known)
        if begin < self.layout.consumed and len(skips) < MOST_SKIPS and at % 2:
            skips = (*skips, Skip(0, state.epoch, begin, begin + size, "a bad batch"))
        origin = OriginEntry("fork", 0.0, self.run, ref, history, skips)
        self.run = f"run-{self.runs}"
        self.runs += 1
        self.entries[self.run] = [origin]
        self.number = 0
        self.begin(ref, world)

    # -- what the ledger says -------------------------------------------------------------------

    def chapters(self) -> list[Chapter]:
        known = self.entries[self.run]
        found = []
        for one in reversed(lineage.history(self.run, known)):
            own = {
                stream.rank: events
                for stream, events in self.streams.items()
                if stream[:3] == (one.run, one.attempt, one.nonce)
            }
            last = one.cut
            if last is None:
                reached = [_book(events, 0, None).steps for events in own.values()]
                common = min((steps[-1][1] if steps else 0 for steps in reached), default=0)
                last = max(one.base, self.newest_own(), common)
            books = {rank: _book(events, one.base, last) for rank, events in own.items()}
            found.append(Chapter(one, last, books))
        return found

    def judgement(self) -> Judgement:
        return judge(self.chapters(), model.skips(self.entries[self.run]))


def _kept(training: Training, chapter: Chapter) -> int:
    """The last step that the sequence knows of: what is behind it in the newest attempt would be
    done again, and a stream that lost it is one that never had it."""
    return chapter.last if chapter.ancestor.cut is not None else training.newest_own()


def _own(chapter: Chapter) -> tuple[str, int, str]:
    one = chapter.ancestor
    return one.run, one.attempt, one.nonce


def _book(events: list[bytes], base: int, last: int | None) -> Book:
    book = Book(base, last)
    book.read(events)
    return book


def check(training: Training) -> None:
    """The ledger and the model agree. Raises AssertionError."""
    judgement = training.judgement()
    assert judgement.verdict == "ok", judgement
    if not training.alive:
        return
    truth = training.state.consumed
    assert set(truth.values()) <= {1}
    per_epoch = Counter(epoch for epoch, _ in truth)
    assert {r.epoch: r.consumed for r in judgement.reports if r.consumed} == per_epoch


def spoil(training: Training, chance: random.Random) -> str | None:
    """Falsify a step that counts, in a copy, and check that it is found. None: there is none."""
    spoilt = copy.copy(training)
    spoilt.streams = {stream: list(events) for stream, events in training.streams.items()}
    counting = [
        (stream, n)
        for chapter in spoilt.chapters()
        for stream, events in spoilt.streams.items()
        if stream[:3] == _own(chapter)
        for n, payload in enumerate(events)
        if isinstance(step := ev.decode(payload), ev.StepCompleted)
        and chapter.ancestor.base < step.step <= _kept(spoilt, chapter)
        and any(share.ranges for share in step.consumed)
    ]
    if not counting:
        return None
    stream, n = chance.choice(counting)
    events = spoilt.streams[stream]
    how = chance.choice(("gone", "stream", "elsewhere", "twice"))
    if how == "stream":
        del spoilt.streams[stream]
    elif how == "gone":
        del events[n]
    else:
        step = ev.decode(events[n])
        assert isinstance(step, ev.StepCompleted)
        (share,) = step.consumed
        (first, last), *_ = share.ranges
        ranges = ((first + 1, last + 1),) if how == "elsewhere" else share.ranges * 2
        moved = msgspec.structs.replace(share, ranges=ranges)
        events[n] = ev.encode(msgspec.structs.replace(step, consumed=(moved,)))
    found = spoilt.judgement()
    expected = ("violated",) if how in ("elsewhere", "twice") else ("unproven", "violated")
    assert found.verdict in expected, (how, stream, n, found)
    return how


class Machine(RuleBasedStateMachine):
    """Everything that may happen to a run, in any order."""

    training: Training

    @initialize(
        length=st.integers(BATCH, 5 * BATCH),
        tail=st.sampled_from(TAILS),
        world=st.sampled_from(WORLDS),
    )
    def start(self, length: int, tail: str, world: int) -> None:
        if tail == "keep" and 0 < length % BATCH < max(WORLDS):
            length -= length % BATCH
        self.training = Training(length, tail, world)

    def _count(self, name: str) -> Training:
        DONE[name] += 1
        return self.training

    @precondition(lambda self: self.training.alive)
    @rule()
    def step(self) -> None:
        self._count("step").step()

    @precondition(lambda self: self.training.alive)
    @rule()
    def snapshot(self) -> None:
        self._count("snapshot").snapshot()

    @precondition(lambda self: self.training.alive)
    @rule(ranks=st.integers(0, 3), lost=st.integers(0, 2))
    def crash(self, ranks: int, lost: int) -> None:
        self._count("crash").crash(ranks, lost)

    @precondition(lambda self: not self.training.alive)
    @rule()
    def resume(self) -> None:
        self._count("resume").resume(self.training.world)

    @precondition(lambda self: not self.training.alive)
    @rule(world=st.sampled_from(WORLDS))
    def resize(self, world: int) -> None:
        self._count("resize").resume(world)

    @rule(back=st.integers(0, 2), world=st.sampled_from(WORLDS))
    def rewind(self, back: int, world: int) -> None:
        self._count("rewind").rewind(back, world)

    @precondition(lambda self: model.candidates(self.training.entries[self.training.run]))
    @rule(at=st.integers(0, 5), world=st.sampled_from(WORLDS))
    def fork(self, at: int, world: int) -> None:
        self._count("fork").fork(at, world)

    @rule(seed=st.integers(0, 1 << 16))
    def spoil(self, seed: int) -> None:
        """The test of the test: what is wrong is found."""
        if how := spoil(self._count("spoil"), random.Random(seed)):
            DONE[f"found: {how}"] += 1

    @invariant()
    def exactly_once(self) -> None:
        if hasattr(self, "training"):
            check(self.training)


RULES: tuple[tuple[str, int], ...] = (
    ("step", 8),
    ("snapshot", 3),
    ("crash", 2),
    ("rewind", 1),
    ("fork", 1),
    ("spoil", 1),
)


def walk(rules: int, seed: int, until: Callable[[], bool] = lambda: False) -> int:
    """So many rules, or fewer where `until` says so, drawn without Hypothesis: a campaign's way. A
    new run every hundred; looked at after all but plain steps, and after every fourth of those.
    Returns how many were done."""
    chance = random.Random(seed)
    done = 0
    while done < rules and not until():
        length = chance.randint(BATCH, 5 * BATCH)
        tail = chance.choice(TAILS)
        if tail == "keep" and 0 < length % BATCH < max(WORLDS):
            length -= length % BATCH
        training = Training(length, tail, chance.choice(WORLDS))
        for _ in range(min(100, rules - done)):
            done += 1
            if _do(training, chance) != "step" or done % 4 == 0:
                check(training)
    return done


def _do(training: Training, chance: random.Random) -> str:
    world = chance.choice(WORLDS)
    if not training.alive:
        name = chance.choice(("resume", "resize", "rewind"))
    else:
        names, weights = zip(*RULES, strict=True)
        (name,) = chance.choices(names, weights)
    if name == "fork" and not model.candidates(training.entries[training.run]):
        name = "snapshot"
    DONE[name] += 1
    if name == "step":
        training.step()
    elif name == "snapshot":
        training.snapshot()
    elif name == "crash":
        training.crash(chance.randrange(4), chance.randrange(3))
    elif name in ("resume", "resize"):
        training.resume(world if name == "resize" else training.world)
    elif name == "rewind":
        training.rewind(chance.randrange(3), world)
    elif name == "fork":
        training.fork(chance.randrange(6), world)
    elif how := spoil(training, chance):
        DONE[f"found: {how}"] += 1
    return name
