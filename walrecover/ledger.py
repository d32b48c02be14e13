"""The ledger of one stream: what the steps that count have consumed, compact.

Owns the reading of a stream's payloads for the ledger, step by step, and what is kept of them: a
few stretches of positions for each pass. What several streams prove together is `tiling`'s. Pure:
no files, no clock.

A million steps of eight ranks are read at once, so only the fields that count are decoded, and the
types that say nothing here are told by their first bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from walrecover import events as ev
from walrecover.consumed import Consumed
from walrecover.errors import Corrupt
from walrecover.intervals import Trail


class _Step(msgspec.Struct, frozen=True, gc=False, tag="StepCompleted"):
    step: int
    consumed: tuple[Consumed, ...] = ()


_HEAD_BYTES = 24
_IS_STEP = b"\xadStepCompleted"
_SAYS_MORE = (b"\xacAttemptBegun", b"\xaaDataOpened", b"\xa9PassEnded")
_decode_step = msgspec.msgpack.Decoder(_Step).decode

Key = tuple[int, int]
"""A pass: the reader's number, and which pass over it."""


class Pass:
    """What the steps of one stream took of one pass. `opened`: what the reader said it reads.

    `first`, `last`: the steps that took from it. `ended`: after which step it was over, `broken`
    where the script had left it.
    """

    __slots__ = (
        "broken", "ended", "first", "last", "left", "opened", "padded", "skipped", "taken",
    )  # fmt: skip

    def __init__(self, opened: ev.DataOpened | None) -> None:
        self.opened = opened
        self.taken, self.padded, self.skipped, self.left = Trail(), Trail(), Trail(), Trail()
        self.first = self.last = 0
        self.ended: int | None = None
        self.broken = False


class Book:
    """One stream's ledger, of the steps behind `base` and through `last` (None: all).

    `steps`: closed intervals of those steps. `silent`: how many steps there are in a stream that
    never said what it reads.
    """

    def __init__(self, base: int, last: int | None) -> None:
        self.base, self.last = base, last
        self.world = 1
        self.passes: dict[Key, Pass] = {}
        self.steps: list[list[int]] = []
        self._opened: dict[int, ev.DataOpened] = {}

    @property
    def silent(self) -> int:
        return 0 if self._opened else sum(last - first + 1 for first, last in self.steps)

    def missing(self, last: int) -> list[tuple[int, int]]:
        """The steps behind the base and through `last` that the stream does not have."""
        found, expected = [], self.base + 1
        for first, reached in sorted(self.steps):
            if first > last:
                break
            if first > expected:
                found.append((expected, first - 1))
            expected = max(expected, reached + 1)
        if expected <= last:
            found.append((expected, last))
        return found

    def read(self, payloads: Iterable[bytes]) -> None:
        """Take in payloads, in the order of the stream. Raises Corrupt."""
        base, limit = self.base, self.last
        for payload in payloads:
            head = payload[:_HEAD_BYTES]
            if _IS_STEP in head:
                try:
                    event = _decode_step(payload)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise Corrupt(f"not an event: {error}") from None
                step = event.step
                if step > base and (limit is None or step <= limit) and self._is_new(step):
                    self._take(step, event.consumed)
            elif any(name in head for name in _SAYS_MORE):
                self._note(ev.decode(payload))

    def _is_new(self, step: int) -> bool:
        steps = self.steps
        if steps and steps[-1][1] == step - 1:
            steps[-1][1] = step
            return True
        if any(first <= step <= last for first, last in steps):
            return False
        steps.append([step, step])
        return True

    def _take(self, step: int, consumed: tuple[Consumed, ...]) -> None:
        for share in consumed:
            found = self.passes.get((share.source, share.epoch))
            if found is None:
                found = self._pass(share.source, share.epoch)
            if not found.first:
                found.first = step
            found.last = step
            for first, end in share.ranges:
                found.taken.add(first, end)
            if share.padded or share.skipped:
                for first, end in share.padded:
                    found.padded.add(first, end)
                for first, end in share.skipped:
                    found.skipped.add(first, end)

    def _pass(self, source: int, epoch: int) -> Pass:
        return self.passes.setdefault((source, epoch), Pass(self._opened.get(source)))

    def _note(self, event: ev.Event | ev.Unknown) -> None:
        if isinstance(event, ev.AttemptBegun):
            self.world = event.world
        elif isinstance(event, ev.DataOpened):
            self._opened[event.source] = event
        elif isinstance(event, ev.PassEnded) and self._counts(event.step):
            found = self._pass(event.source, event.epoch)
            found.ended, found.broken = event.step, event.broken
            for first, end in event.left:
                found.left.add(first, end)

    def _counts(self, step: int) -> bool:
        """Whether what happened after this step, before the next, is part of the history: also
        directly after the base, whose state says that it will happen."""
        return step >= self.base and (self.last is None or step <= self.last)
