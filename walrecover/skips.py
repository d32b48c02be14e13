"""What a history leaves out on purpose: from a wish to ranges of positions, in whole batches.

Owns the arithmetic and the refusals. Pure: what was consumed comes from the journal's events, in
order; who leaves it out is the sampler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from walrecover.consumed import Ranges
from walrecover.entries import Skip
from walrecover.errors import BadInput
from walrecover.events import DataOpened, PassEnded, StepCompleted

SAMPLES = ("global", "sample")
"""Kinds of readers of whose passes a sampler can leave something out."""

_RANGE = re.compile(r"(\d{1,18}):(\d{1,18})", re.ASCII)


def merged(ranges: Iterable[Sequence[int]]) -> Ranges:
    """The same positions as ascending, disjoint, half-open ranges."""
    found: list[list[int]] = []
    for begin, end in sorted((begin, end) for begin, end in ranges if begin < end):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return tuple((begin, end) for begin, end in found)


def of_pass(skips: Iterable[Skip], source: int, epoch: int) -> Ranges:
    """What one pass over one reader leaves out."""
    return merged((s.begin, s.end) for s in skips if (s.source, s.epoch) == (source, epoch))


def parse(text: str) -> tuple[int, int]:
    """`A:B`: positions A to B - 1. Raises BadInput."""
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise BadInput(f"--skip {text}: give two positions, the second not included: 640:704")
    return int(match[1]), int(match[2])


class Standing:
    """How far each reader's pass had come, from the events of a history, oldest first."""

    def __init__(self) -> None:
        self.opened: dict[int, DataOpened] = {}
        self.passes: dict[int, int] = {}
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self._last: dict[int, int] = {}  # reader -> the last step that consumed of it

    def take(self, event: Any) -> None:
        """One event of any rank. Those of the same step may come in any order."""
        if isinstance(event, DataOpened):
            self.opened[event.source] = event
        elif isinstance(event, PassEnded):
            self._enter(event.source, event.epoch + 1)
        elif isinstance(event, StepCompleted):
            for one in event.consumed:
                if self._enter(one.source, one.epoch):
                    self._ranges[one.source] += (*one.ranges, *one.skipped)
                self._last[one.source] = event.step

    def _enter(self, source: int, epoch: int) -> bool:
        """Whether this is the pass in which the reader stands."""
        known = self.passes.get(source, -1)
        if epoch > known:
            self.passes[source], self._ranges[source] = epoch, []
        elif len(self._ranges[source]) > 4096:
            self._ranges[source] = list(merged(self._ranges[source]))
        return epoch >= known

    def consumed(self, source: int) -> Ranges:
        """Of the pass in which it stands, all ranks together."""
        return merged(self._ranges.get(source, ()))

    def readers(self) -> list[int]:
        """Those of samples that steps have consumed of; those that are opened, if none has been."""
        found = [source for source in sorted(self.opened) if self.has_samples(source)]
        return [source for source in found if source in self._last] or found

    def has_samples(self, source: int) -> bool:
        """Whether a sampler could leave some out: the items of any other iterable are its own."""
        opened = self.opened.get(source)
        return opened is not None and opened.kind in SAMPLES

    def whole(self, source: int, begin: int, end: int) -> tuple[int, int]:
        """The range, widened to whole batches of its reader."""
        opened = self.opened.get(source)
        batch = max(1, opened.batch if opened else 0)
        end = -(-end // batch) * batch
        if opened is not None and opened.length is not None:
            end = min(end, opened.length)
        return begin // batch * batch, end


def placed(
    wanted: tuple[int, int],
    standing: Standing,
    step: int,
    *,
    source: int | None = None,
    epoch: int | None = None,
) -> Skip:
    """The skip of these positions for a history that goes on after `step`, in whole batches.

    `source`: which reader, where several are read. `epoch`: the pass; by default the one in which
    the reader stands. Raises BadInput: what the journal does not know, what lies outside of the
    pass, what was consumed already.
    """
    said = f"--skip {wanted[0]}:{wanted[1]}"
    readers = standing.readers()
    if not readers:
        raise BadInput(
            f"{said}: the journal does not say what was read before step {step}, so that no "
            f"position can be left out"
        )
    if source is None and len(readers) > 1:
        names = ", ".join(map(str, readers))
        raise BadInput(f"{said}: several readers are read ({names}): choose one by --reader")
    chosen = readers[0] if source is None else source
    if chosen not in readers:
        names = ", ".join(map(str, readers))
        raise BadInput(f"{said}: there is no reader {chosen}; there are {names}")
    now = standing.passes.get(chosen, 0)
    which = now if epoch is None else epoch
    if which < now:
        raise BadInput(f"{said}: pass {which} was over before step {step}, which is in pass {now}")
    opened = standing.opened.get(chosen)
    length = opened.length if opened else None
    if length is not None and wanted[1] > length:
        raise BadInput(
            f"{said}: outside the epoch: reader {chosen} has {length} positions, 0 to {length - 1}"
        )
    begin, end = standing.whole(chosen, *wanted)
    for first, last in standing.consumed(chosen) if which == now else ():
        if begin < last and first < end:
            raise BadInput(
                f"{said}: positions {max(begin, first)} to {min(end, last) - 1} of pass {which} "
                f"were already consumed by step {step}: fork at an earlier snapshot"
            )
    return Skip(chosen, which, begin, end, "by order")


def between(
    steps: Iterable[StepCompleted], standing: Standing, why: str, more: Sequence[Skip] = ()
) -> tuple[Skip, ...]:
    """What these steps consumed of samples, on all ranks, as skips in whole batches."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in steps:
        for one in event.consumed:
            if not standing.has_samples(one.source):
                continue
            place = found.setdefault((one.source, one.epoch), [])
            place += (standing.whole(one.source, begin, end) for begin, end in one.ranges)
    for skip in more:
        place = found.setdefault((skip.source, skip.epoch), [])
        place.append(standing.whole(skip.source, skip.begin, skip.end))
    return tuple(
        Skip(source, epoch, begin, end, why)
        for (source, epoch), ranges in sorted(found.items())
        for begin, end in merged(ranges)
    )


def following(
    steps: Iterable[StepCompleted], standing: Standing, skips: Iterable[Skip]
) -> tuple[Skip, ...]:
    """What the next step takes: the positions behind those of this step (`steps`: it, of every
    rank), as many as it took, past those that are left out already; at the end of a pass the first
    of the next one."""
    taken: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in steps:
        for one in event.consumed:
            if standing.has_samples(one.source):
                taken.setdefault((one.source, one.epoch), []).extend((*one.ranges, *one.padded))
    known = tuple(skips)
    found = []
    for (source, epoch), ranges in taken.items():
        whole = merged(ranges)
        width, begin = sum(end - first for first, end in whole), whole[-1][1] if whole else 0
        opened = standing.opened.get(source)
        length = opened.length if opened else None
        begin = _past(begin, of_pass(known, source, epoch))
        if length is not None and begin >= length:
            epoch, begin = epoch + 1, _past(0, of_pass(known, source, epoch + 1))
        end = begin + width if length is None else min(begin + width, length)
        if begin < end:
            found.append(Skip(source, epoch, begin, end))
    return tuple(found)


def _past(position: int, ranges: Ranges) -> int:
    """The first position from here on that is in none of the ranges."""
    for begin, end in ranges:
        if begin <= position < end:
            position = end
    return position


def told(skips: Iterable[Skip]) -> str:
    """For people."""
    return ", ".join(
        f"positions {s.begin} to {s.end - 1} of pass {s.epoch}"
        + (f" over reader {s.source}" if s.source else "")
        for s in skips
    )
