"""What the ledgers of a history prove together: is every pass tiled exactly?

Owns the judgement of `walrecover audit` on the data (specs/13-ledger.md). Pure: no files, no clock.
A history is a list of chapters, one for each attempt on the chain, forks' parents included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from walrecover.consumed import Facts
from walrecover.entries import Ancestor, Skip, attempt_label
from walrecover.events import DataOpened
from walrecover.intervals import Stretch, lay
from walrecover.ledger import Book, Key, Pass

GLOBAL, ITEM = "global", "item"
_NOTHING = Facts("")


class Chapter(NamedTuple):
    """What one attempt gave to the history: the steps behind its base and through `last`.

    `books` by rank. `losses`: what is wrong with its streams, in words.
    """

    ancestor: Ancestor
    last: int
    books: Mapping[int, Book]
    losses: tuple[str, ...] = ()

    @property
    def world(self) -> int:
        """Of how many ranks; 0 where no stream says so."""
        return max((book.world for book in self.books.values()), default=0)

    @property
    def label(self) -> str:
        one = self.ancestor
        return f"attempt {attempt_label(one.attempt, one.nonce)} of run {one.run}"


class Report(NamedTuple):
    """One pass over one reader. `ranks`: those that it holds for, none for a global order.

    `consumed`: positions handed out. `gaps`: positions that no step consumed; `unknown`: which
    may have been by steps that cannot be read. `repeats`: consumed more than once. `outside`: no
    positions of the pass. `unskipped`: consumed, and yet to be skipped. `skipped`: left out on
    purpose. `left`: handed out after the last step. `padded`: samples repeated to fill up a last
    batch. `to_come`: positions of a pass that is not over. `beyond`: not reached, in one that the
    script left. `changed`: what did not stay the same within the pass.
    """

    source: int
    epoch: int
    ranks: tuple[int, ...]
    facts: Facts
    loop: tuple[int, ...]
    steps: tuple[int, int]
    consumed: int
    gaps: tuple[Stretch, ...] = ()
    unknown: tuple[Stretch, ...] = ()
    repeats: tuple[Stretch, ...] = ()
    outside: tuple[Stretch, ...] = ()
    unskipped: tuple[Stretch, ...] = ()
    skipped: tuple[Stretch, ...] = ()
    left: tuple[Stretch, ...] = ()
    padded: int = 0
    to_come: int = 0
    beyond: int = 0
    changed: str = ""

    @property
    def faults(self) -> bool:
        found = (self.gaps, self.repeats, self.outside, self.unskipped, self.changed)
        return any(found)


class Judgement(NamedTuple):
    """`reports` by pass; `unproven`: what the journal cannot prove, in sentences."""

    reports: tuple[Report, ...]
    unproven: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """ "violated", "unproven" or "ok"."""
        if any(report.faults for report in self.reports):
            return "violated"
        return "unproven" if self.unproven else "ok"


def judge(chapters: Sequence[Chapter], skips: Iterable[Skip] = ()) -> Judgement:
    """Judge a history, given oldest chapter first. `skips`: what the newest plan leaves out."""
    missing = list(_missing(chapters))
    silent = list(_silent(chapters))
    ordered = {(skip.source, skip.epoch): [] for skip in skips}  # type: dict[Key, list[Stretch]]
    for skip in skips:
        ordered[skip.source, skip.epoch].append(Stretch(skip.begin, skip.end - skip.begin))
    unread = [(one.first, one.last) for one in missing + silent]
    reports = []
    keys = sorted({key for c in chapters for book in c.books.values() for key in book.passes})
    for key in keys:
        last = not any(other[0] == key[0] and other[1] > key[1] for other in keys)
        for ranks, shares in _shares(chapters, key):
            reports.append(_report(key, ranks, shares, ordered.get(key, []), unread, last))
    reports = list(_alike(reports))
    told = missing + (silent if any(report.unknown for report in reports) else [])
    unproven = [str(one) for one in told]
    unproven += [f"{c.label}: {loss}" for c in chapters for loss in c.losses]
    if chapters and not reports and any(c.last > c.ancestor.base for c in chapters):
        unproven.append("no step says what it consumed: read the data through run.loop()")
    return Judgement(tuple(reports), tuple(unproven))


class _Missing(NamedTuple):
    """Steps that nothing says the data of."""

    who: str
    first: int
    last: int
    why: str

    def __str__(self) -> str:
        steps = f"step {self.first}"
        if self.last > self.first:
            steps = f"steps {self.first} to {self.last}"
        return f"{self.who}: {self.why}, so what {steps} consumed is not known"


def _missing(chapters: Sequence[Chapter]) -> Iterator[_Missing]:
    """The steps of the history that no journal has."""
    for chapter in chapters:
        first, last = chapter.ancestor.base + 1, chapter.last
        if last < first:
            continue
        if not chapter.books:
            yield _Missing(chapter.label, first, last, "its journal is missing")
            continue
        for rank in range(max(chapter.world, max(chapter.books) + 1)):
            book = chapter.books.get(rank)
            who = f"rank {rank} of {chapter.label}"
            if book is None:
                yield _Missing(who, first, last, "its journal is missing")
                continue
            for gone in book.missing(last):
                yield _Missing(who, *gone, "its journal does not have them")


def _silent(chapters: Sequence[Chapter]) -> Iterator[_Missing]:
    """The steps of attempts that consumed nothing, as far as they say: those of a release without
    a ledger say nothing. No proof is lacking where no position is."""
    for chapter in chapters:
        for rank, book in sorted(chapter.books.items()):
            if book.silent:
                who = f"rank {rank} of {chapter.label}"
                first, last = chapter.ancestor.base + 1, chapter.last
                yield _Missing(who, first, last, "its journal says of no data what it is")


def _shares(
    chapters: Sequence[Chapter], key: Key
) -> Iterator[tuple[tuple[int, ...], list[tuple[Chapter, Pass]]]]:
    """The parts of a pass that must tile it together: of all ranks where its order is global, else
    of each rank, in every attempt. A rank that an attempt did not have goes on where another of
    that attempt stood."""
    found = [
        (chapter, rank, book.passes[key])
        for chapter in chapters
        for rank, book in sorted(chapter.books.items())
        if key in book.passes
    ]
    if any(one.opened is not None and one.opened.kind == GLOBAL for _, _, one in found):
        yield (), [(chapter, one) for chapter, _, one in found]
        return
    involved = [chapter for chapter in chapters if any(chapter is c for c, _, _ in found)]
    world = max(max(chapter.world, 1) for chapter in involved)
    for rank in range(world):
        shares = []
        for chapter in involved:
            book = chapter.books.get(rank if rank < chapter.world else rank % chapter.world)
            if book is not None and key in book.passes:
                shares.append((chapter, book.passes[key]))
        if shares:
            yield (rank,), shares


def _report(
    key: Key,
    ranks: tuple[int, ...],
    shares: Sequence[tuple[Chapter, Pass]],
    ordered: Sequence[Stretch],
    missing: Sequence[tuple[int, int]],
    newest: bool,
) -> Report:
    passes = [one for _, one in shares]
    opened = next((one.opened for one in reversed(passes) if one.opened is not None), None)
    facts = facts_of(opened)
    taken = [s for one in passes for s in one.taken.stretches()]
    skipped = [s for one in passes for s in one.skipped.stretches()] + list(ordered)
    left = [s for one in passes for s in one.left.stretches()]
    reached = max((s.end for s in (*taken, *left)), default=0)
    newest_step = max((one.last for one in passes), default=0)
    # An end that was followed by more steps was none: the loop has been given more to do.
    ends = [one for one in passes if one.ended is not None and one.ended >= newest_step]
    over = bool(ends) or not newest
    broken = bool(ends) and all(one.broken for one in ends)
    length = facts.length
    limit = length if over and not broken and length is not None else reached
    if length is not None:
        limit = min(limit, length)
    found = _classes(limit, taken, skipped, left)
    steps = (min((one.first for one in passes if one.first), default=0), newest_step)
    ended = max((one.ended for one in ends if one.ended is not None), default=None)
    if _may_be_in(missing, steps[0], ended, taken):
        found["unknown"] = found.pop("gaps", [])
    rest = max(0, length - reached) if length is not None else 0
    report = Report(
        *key,
        ranks,
        facts,
        opened.loop if opened is not None else (),
        steps,
        consumed=sum(s.size for s in taken),
        padded=sum(s.size for one in passes for s in one.padded.stretches()),
        to_come=0 if over else rest,
        beyond=rest if broken else 0,
        changed=_changed(passes),
    )
    classes: dict[str, Any] = {name: tuple(cells) for name, cells in found.items()}
    return report._replace(**classes)


def _classes(
    limit: int, taken: list[Stretch], skipped: list[Stretch], left: list[Stretch]
) -> dict[str, list[Stretch]]:
    """The positions that are not consumed exactly once as they should be, by what they are."""
    found: dict[str, list[Stretch]] = {}
    whole = [Stretch(0, limit)] if limit else []
    for where, (inside, times, passed_over, leftover) in lay([whole, taken, skipped, left]):
        kind = ""
        if times and not inside:
            kind = "outside"
        elif times > 1:
            kind = "repeats"
        elif times and passed_over:
            kind = "unskipped"
        elif not times and passed_over:
            kind = "skipped"
        elif not times and leftover:
            kind = "left"
        elif not times:
            kind = "gaps"
        if kind:
            found.setdefault(kind, []).append(where)
    return found


def _may_be_in(
    missing: Sequence[tuple[int, int]], first: int, ended: int | None, taken: Sequence[Stretch]
) -> bool:
    """Whether steps that nothing is known of may have taken from a pass that is known from step
    `first` on, and was over after `ended`."""
    from_beginning = any(stretch.start == 0 for stretch in taken)
    return any(
        not (ended is not None and a > ended) and not (from_beginning and b < first)
        for a, b in missing
    )


def _changed(passes: Sequence[Pass]) -> str:
    """What of a pass's facts did not stay the same: its positions would be other samples."""
    facts = [facts_of(one.opened) for one in passes if one.opened is not None]
    for name in ("kind", "length", "seed", "digest", "dropped"):
        if name == "length" and all(one.kind == ITEM for one in facts):
            continue  # a loop over a range that is longer now: more is to be done
        values = list(dict.fromkeys(getattr(one, name) for one in facts))
        if len(values) > 1:
            return f"{name}: {_shown(values[0])}, then {_shown(values[1])}"
    return ""


def _shown(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def facts_of(opened: DataOpened | None) -> Facts:
    if opened is None:
        return _NOTHING
    return Facts(*(getattr(opened, name) for name in Facts._fields))


def _alike(reports: Sequence[Report]) -> Iterator[Report]:
    """Ranks of which the same is to be said become one report."""
    found: dict[Report, list[int]] = {}
    for report in reports:
        found.setdefault(report._replace(ranks=()), []).extend(report.ranks)
    for report, ranks in found.items():
        yield report._replace(ranks=tuple(ranks))
