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


_STEP = b"\xa4type\xadStepCompleted"
_HEAD_BYTES = 24
_SAYS_MORE = (b"\xacAttemptBegun", b"\xaaDataOpened", b"\xa9PassEnded")
_decode_step = msgspec.msgpack.Decoder(_Step).decode

Key = tuple[int, int]
"""A pass: the reader's number, and which pass over it."""


class Pass(msgspec.Struct):
    """What the steps of one stream took of one pass. `opened`: what the reader said it reads.

    `first`, `last`: the steps that took from it. `ended`: after which step it was over, `broken`
    where the script had left it.
    """

    opened: ev.DataOpened | None
    taken: Trail = msgspec.field(default_factory=Trail)
    padded: Trail = msgspec.field(default_factory=Trail)
    skipped: Trail = msgspec.field(default_factory=Trail)
    left: Trail = msgspec.field(default_factory=Trail)
    first: int = 0
    last: int = 0
    ended: int | None = None
    broken: bool = False


class Book(msgspec.Struct):
    """One stream's ledger, of the steps behind `base` and through `last` (None: all).

    `steps`: closed intervals of those steps. `opened`: what each reader said last.
    """

    base: int
    last: int | None
    world: int = 1
    passes: dict[Key, Pass] = {}
    steps: list[list[int]] = []
    opened: dict[int, ev.DataOpened] = {}

    @property
    def silent(self) -> int:
        """How many steps there are in a stream that never said what it reads."""
        return 0 if self.opened else sum(last - first + 1 for first, last in self.steps)

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
        base, limit = self.base, float("inf") if self.last is None else self.last
        decode, starts_with = _decode_step, bytes.startswith
        for payload in payloads:
            if starts_with(payload, _STEP, 1) or _STEP in payload[:_HEAD_BYTES]:
                try:
                    event = decode(payload)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise Corrupt(f"not an event: {error}") from None
                if base < event.step <= limit:
                    self._take(event.step, event.consumed)
            elif any(name in payload[:_HEAD_BYTES] for name in _SAYS_MORE):
                self._note(ev.decode(payload))

    def _take(self, step: int, consumed: tuple[Consumed, ...]) -> None:
        steps = self.steps
        if steps and steps[-1][1] == step - 1:
            steps[-1][1] = step
        elif any(first <= step <= last for first, last in steps):
            return
        else:
            steps.append([step, step])
        for share in consumed:
            found = self.passes.get((share.source, share.epoch))
            if found is None:
                found = self._pass(share.source, share.epoch)
            if not found.first:
                found.first = step
            found.last = step
            add = found.taken.add
            for first, end in share.ranges:
                add(first, end)
            if share.padded or share.skipped:
                for first, end in share.padded:
                    found.padded.add(first, end)
                for first, end in share.skipped:
                    found.skipped.add(first, end)

    def _pass(self, source: int, epoch: int) -> Pass:
        return self.passes.setdefault((source, epoch), Pass(self.opened.get(source)))

    def _note(self, event: ev.Event | ev.Unknown) -> None:
        if isinstance(event, ev.AttemptBegun):
            self.world = event.world
        elif isinstance(event, ev.DataOpened):
            self.opened[event.source] = event
        elif isinstance(event, ev.PassEnded) and self._counts(event.step):
            found = self._pass(event.source, event.epoch)
            found.ended, found.broken = event.step, event.broken
            for first, end in event.left:
                found.left.add(first, end)

    def _counts(self, step: int) -> bool:
        """Whether what happened after this step, before the next, is part of the history: also
        directly after the base, whose state says that it will happen."""
        return step >= self.base and (self.last is None or step <= self.last)
