"""What the steps take from the readers of the script's loops: collected for the ledger.

Owns the readers' numbers and passes, what was handed out since the last step, and what a snapshot
keeps of it. On the training thread it counts and keeps references; ranges and digests are made in
the journal's thread (`shares`). When something is fetched, and when a step is made, is `loops`'.

A reader is one iterable of a loop in which steps are made; the loop's place in the script names it.
Loops without steps (an evaluation) get no number and are no part of the ledger.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from xxhash import xxh3_128

from walrecover import events as ev
from walrecover.consumed import Consumed, Facts, Handed, Ranges, chain, packed
from walrecover.errors import NotRestored
from walrecover.session.position import Known, Ledger, Where
from walrecover.session.sources import Path, Source
from walrecover.torch_adapter import reading

KEPT_BATCHES = 64
"""Batches whose ids are kept by reference before they are folded into a digest."""


class Batches:
    """What several batches were, folded: their positions, and the digest of their ids."""

    __slots__ = ("_hash", "padded", "ranges", "skipped")

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.padded: list[tuple[int, int]] = []
        self.skipped: list[tuple[int, int]] = []
        self._hash = xxh3_128()

    def add(self, handed: Handed, at: int) -> None:
        """A batch; `at`: its first position, where it does not tell its positions."""
        ranges = ((at, at + len(handed.ids)),) if handed.ranges is None else handed.ranges
        for into, given in (
            (self.ranges, ranges),
            (self.padded, handed.padded),
            (self.skipped, handed.skipped),
        ):
            for first, end in given:
                if into and into[-1][1] == first:
                    into[-1] = (into[-1][0], end)
                elif end > first:
                    into.append((first, end))
        self._hash.update(packed(handed.ids))

    def digest(self) -> bytes:
        return self._hash.digest()


class Reader:
    """One iterable of one loop, being read. `number`: None as long as no step was made in it."""

    def __init__(self, where: Where, source: Source, facts: Facts) -> None:
        self.where, self.source, self.facts = where, source, facts
        self.number: int | None = None
        self.epoch = 0
        self.active = False  # steps were made in this pass
        self.announced = False
        self.items = self.taken = 0
        self.at = self.since = 0
        self.kept_at = -1
        self.chain = b""
        self.tells = hasattr(source.iterator, "handed")
        self._size = facts.batch if facts.kind == "sample" and facts.batch else 1
        self._fresh: list[Handed] = []
        self._folded: Batches | None = None
        self._folded_at = 0
        self._unchained: list[Sequence[Any]] = []

    def take(self) -> None:
        """An item was handed out."""
        self.items += 1
        if not self.tells:
            self.at += self._size
            return
        handed: Handed = self.source.iterator.handed  # type: ignore[attr-defined]
        self.at += len(handed.ids)
        self._fresh.append(handed)
        self._unchained.append(handed.ids)
        if len(self._fresh) >= KEPT_BATCHES:
            self._fold()
        if len(self._unchained) >= KEPT_BATCHES:
            self.chained()

    def chained(self) -> None:
        """Take the ids into the digest of all ids of this pass."""
        for ids in self._unchained:
            self.chain = chain(self.chain, ids)
        self._unchained.clear()

    def begin_at(self, known: Known, count: int) -> None:
        """Go on with the last pass, behind its first `count` items."""
        self.number, self.epoch, self.active = known.number, max(0, known.passes - 1), True
        self.at = self.since = known.at
        self.items = self.taken = count
        self.chain = known.chain

    def known(self, varied: bool) -> Known:
        """What a snapshot keeps of it now."""
        number, at = self.number, self.at
        assert number is not None
        self.kept_at = at
        ids = (*self._unchained,)
        return Known(number, self.facts, self.epoch + 1, varied, at, self.chain, ids)

    def share(self) -> Share:
        """What was handed out since the last share."""
        length, at = self.facts.length, self.at
        if length is not None and not self.tells and at > length:
            at = self.at = length  # a last batch that is not full
        share = (
            self.number,
            self.epoch,
            self.since,
            at,
            self._folded,
            self._folded_at,
            self._fresh,
        )
        self.since, self.taken = self.at, self.items
        self._folded, self._fresh = None, []
        return share

    def _fold(self) -> None:
        """No step comes: ids are not kept for a whole evaluation."""
        if self._folded is None:
            self._folded, self._folded_at = Batches(), self.since
        for handed in self._fresh:
            self._folded.add(handed, self._folded_at)
            self._folded_at += len(handed.ids)
        self._fresh = []


Share = tuple[int | None, int, int, int, Batches | None, int, list[Handed]]


def shares(taken: Sequence[Share]) -> tuple[Consumed, ...]:
    """In the journal's thread: what a step consumed, as the journal has it."""
    found = []
    for number, epoch, since, at, folded, folded_at, fresh in taken:
        assert number is not None
        if folded is None and not fresh:
            found.append(Consumed(number, epoch, ((since, at),)))
            continue
        batches, place = (folded, folded_at) if folded is not None else (Batches(), since)
        for handed in fresh:
            batches.add(handed, place)
            place += len(handed.ids)
        found.append(
            Consumed(
                number,
                epoch,
                tuple(batches.ranges),
                batches.digest(),
                tuple(batches.padded),
                tuple(batches.skipped),
            )
        )
    return tuple(found)


class Consuming:
    """The readers of a run on this rank. `step`: the last one that was made."""

    def __init__(self) -> None:
        self.step = 0
        self.notes: list[ev.DataOpened | ev.PassEnded] = []
        self._known: dict[Where, Known] = {}
        self._resumed: set[Where] = set()
        self._announced: dict[int, Facts] = {}
        self._made: deque[list[Share]] = deque()
        self._left: list[Share] = []

    # -- what the loops tell ------------------------------------------------------------------

    def begin(self, path: Path, sources: Sequence[Source]) -> list[Reader]:
        """A new pass over the iterables of a loop. Raises NotRestored, see `resume`."""
        found = self._readers(path, sources)
        for reader in found:
            if known := self._known.get(reader.where):
                if reader.where in self._resumed and not known.varied:
                    _require_same(reader, known)
                reader.number, reader.epoch = known.number, known.passes
            self._resumed.discard(reader.where)
        return found

    def resume(
        self, path: Path, sources: Sequence[Source], count: int, *, inside: bool
    ) -> list[Reader]:
        """A pass that goes on behind its first `count` items. `inside`: another loop inside its
        current item does.

        Raises NotRestored where what it reads is not what it was, before anything is trained.
        """
        found = self._readers(path, sources)
        for reader in found:
            if known := self._known.get(reader.where):
                _require_same(reader, known)
                if count:
                    reader.begin_at(known, count)
                    if not inside:
                        _require_same_ids(reader, known)
                else:
                    reader.number, reader.epoch = known.number, known.passes
            self._resumed.discard(reader.where)
        return found

    def coming(
        self, where: Where, of_loops: Iterable[Sequence[Reader]], count: int = 0
    ) -> tuple[int, int]:
        """The number and the pass of a reader whose loop begins, inside of loops with these
        readers, or goes on behind its first `count` items: what they are once a step is made."""
        if known := self._known.get(where):
            return known.number, known.passes - (count > 0)
        before = sum(reader.number is None for readers in of_loops for reader in readers)
        return len(self._known) + before + where[1], 0

    def _readers(self, path: Path, sources: Sequence[Source]) -> list[Reader]:
        return [
            Reader(source.home or (path, n), source, _facts(source))
            for n, source in enumerate(sources)
        ]

    def made(self, of_loops: Iterable[Sequence[Reader]]) -> None:
        """A step was made inside of loops with these readers: it took what they had handed out
        since the step before."""
        taken, self._left = self._left, []
        for readers in of_loops:
            for reader in readers:
                if not reader.announced:
                    self._open(reader)
                if reader.items != reader.taken:
                    taken.append(reader.share())
        self._made.append(taken)

    def ended(self, readers: Sequence[Reader], broken: bool) -> None:
        """A loop is over: left by break, or because an iterable had no more items."""
        for reader in readers:
            if not reader.active:
                continue
            reader.active = False
            left: Ranges = ()
            if reader.items != reader.taken:
                share = reader.share()
                self._left.append(share)
                left = _positions(share)
            self._known[reader.where] = reader.known(self._known[reader.where].varied)
            assert reader.number is not None
            others_end = len(readers) > 1 and reader.at != reader.facts.length
            self.notes.append(
                ev.PassEnded(
                    at=time.time(),
                    step=self.step,
                    source=reader.number,
                    epoch=reader.epoch,
                    broken=broken or others_end,
                    left=left,
                )
            )

    def _open(self, reader: Reader) -> None:
        """The first step of a pass, or the first of this attempt in it."""
        known = self._known.get(reader.where)
        varied = known is not None and (known.varied or bool(_differing(known.facts, reader.facts)))
        reader.number = len(self._known) if known is None else known.number
        reader.active = reader.announced = True
        self._known[reader.where] = reader.known(varied)
        if self._announced.get(reader.number) == reader.facts:
            return
        self._announced[reader.number] = reader.facts
        said = reader.facts._asdict()
        self.notes.append(
            ev.DataOpened(at=time.time(), source=reader.number, loop=reader.where[0], **said)
        )

    # -- what the recorder asks ---------------------------------------------------------------

    def taken(self) -> list[Share]:
        """What the oldest step that is not recorded yet took: for `shares`."""
        return self._made.popleft() if self._made else []

    # -- snapshots ----------------------------------------------------------------------------

    def ledger(self, of_loops: Iterable[Sequence[Reader]]) -> Ledger:
        """What a snapshot keeps; `of_loops`: the readers of the loops that are being read."""
        for readers in of_loops:
            for reader in readers:
                if reader.active and reader.kept_at != reader.at:
                    varied = self._known[reader.where].varied
                    self._known[reader.where] = reader.known(varied)
        return Ledger(self.step, (*self._known.items(),))

    def keep(self, ledger: Ledger) -> None:
        """Go on from what a snapshot kept."""
        self.step = ledger.step
        self._known = dict(ledger.readers)
        self._resumed = set(self._known)


def _facts(source: Source) -> Facts:
    found = reading.facts(source.value, source.iterator)
    return found._replace(keyed=source.is_loader and source.this.seed is not None)


def _positions(share: Share) -> Ranges:
    found = shares([share])
    return found[0].ranges


def _differing(before: Facts, now: Facts) -> str:
    """The first of the facts that fix an order which is another. A plain iterable may have become
    longer or shorter: positions mean the same. Of no kind is what other ranks read (`dealing`)."""
    if not before.kind:
        return ""
    for name in _COMPARED:
        if getattr(before, name) != getattr(now, name):
            if name == "length" and before.kind == now.kind == "item":
                continue
            return name
    return ""


def _require_same(reader: Reader, known: Known) -> None:
    name = _differing(known.facts, reader.facts)
    if not name:
        return
    before, now = getattr(known.facts, name), getattr(reader.facts, name)
    raise NotRestored(
        f"{_COMPARED[name]} of loop {_numbered(reader)} was {_shown(before)} when the snapshot was "
        f"taken, and is {_shown(now)} now: give it the data and the order it had, or start over "
        f"with WALRECOVER_RESUME=never"
    )


def _require_same_ids(reader: Reader, known: Known) -> None:
    """What a sampler gave out before the snapshot, it has given out again by now."""
    passed = getattr(reader.source.iterator, "passed", b"")
    if passed and known.chain and known.facts.kind and passed != known.chain:
        raise NotRestored(
            f"the sampler of loop {_numbered(reader)} gives out other samples than before the "
            f"snapshot: give it the data and the order it had, or start over with "
            f"WALRECOVER_RESUME=never"
        )


def _numbered(reader: Reader) -> str:
    return ".".join(str(n + 1) for n in reader.where[0])


_COMPARED = {
    "kind": "what is counted in the data",
    "length": "the length of the data",
    "seed": "the seed of the order",
    "digest": "the digest of the data",
    "dropped": "what is left out of the data",
}


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    return value.hex() if isinstance(value, bytes) else str(value)
