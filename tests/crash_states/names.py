"""The names of the tree over time: which changes are durable, and what any of them add up to.

Owns: namespaces, as directory inode to name to inode, shared where they did not change. The
fault model that decides which changes to apply is in `model`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container, Mapping, Sequence

from . import ops

Namespace = Mapping[int, Mapping[str, int]]
_NEVER = 1 << 60


class Names:
    def __init__(self, operations: Sequence[ops.Op]) -> None:
        self._ops = operations
        self.changes = [
            at
            for at, op in enumerate(operations)
            if isinstance(op, ops.NameOp) and not isinstance(op, ops.LostLink)
        ]
        self._waiting: dict[int, list[int]] = {}
        self._durable_at: dict[int, int] = {}
        self._queued = 0
        self._after: list[Namespace] = [{ops.ROOT: {}}]

    def sync(self, at: int, directory: int, cover: int) -> None:
        """The sync at `at` makes durable this directory's changes up to operation `cover`."""
        while self._queued < len(self.changes) and self.changes[self._queued] <= cover:
            queued = self.changes[self._queued]
            self._waiting.setdefault(self._change(queued).dir, []).append(queued)
            self._queued += 1
        everything = directory == ops.EVERYTHING
        for place in list(self._waiting) if everything else [directory]:
            waiting = self._waiting.get(place, [])
            self._waiting[place] = [change for change in waiting if change > cover]
            for change in waiting:
                if change <= cover:
                    self._durable_at[change] = at

    def pending(self, now: int, also: frozenset[int], order: str) -> list[int]:
        """The changes that a crash at `now` may take away, oldest first."""
        seen = self.changes[: bisect_right(self.changes, now)]
        pending = [at for at in seen if self._durable_at.get(at, _NEVER) >= now]
        if order == "ordered":
            durable = [at for at in seen if self._durable_at.get(at, _NEVER) < now]
            pending = [at for at in pending if not durable or at > durable[-1]]
        return pending + sorted(at for at in also if isinstance(self._ops[at], ops.NameOp))

    def _change(self, at: int) -> ops.NameOp:
        op = self._ops[at]
        assert isinstance(op, ops.NameOp)
        return op

    def after(self, count: int) -> Namespace:
        """The namespace with the first `count` changes in place."""
        while len(self._after) <= count:
            change = self._change(self.changes[len(self._after) - 1])
            self._after.append(_Draft(self._after[-1]).apply(change).space)
        return self._after[count]

    def up_to(self, now: int) -> Namespace:
        return self.after(bisect_right(self.changes, now))

    def with_only(self, now: int, pending: Sequence[int], kept: Container[int]) -> Namespace:
        """The namespace at `now` where of the pending changes only those in `kept` are there."""
        if not pending:
            return self.up_to(now)
        first = bisect_left(self.changes, pending[0])
        draft, uncertain = _Draft(self.after(first)), set(pending)
        seen = self.changes[first : bisect_right(self.changes, now)]
        for at in sorted(uncertain.union(seen)):
            if at in kept or at not in uncertain:
                draft.apply(self._change(at))
        return draft.space


class _Draft:
    """A namespace under change; directories are copied when first touched."""

    def __init__(self, base: Namespace) -> None:
        self.space: dict[int, dict[str, int]] = dict(base)  # type: ignore[arg-type]
        self._own: set[int] = set()

    def _directory(self, ino: int) -> dict[str, int]:
        if ino not in self._own:
            self._own.add(ino)
            self.space[ino] = dict(self.space.get(ino, {}))
        return self.space[ino]

    def apply(self, op: ops.NameOp) -> _Draft:
        entries = self._directory(op.dir)
        if isinstance(op, ops.Unlink):
            entries.pop(op.name, None)
            return self
        if isinstance(op, ops.Rename):
            if op.ino in self.space:
                self._detach(op.ino)
            source = self._directory(op.source_dir)
            if source.get(op.source_name) == op.ino:
                del source[op.source_name]
        elif isinstance(op, ops.Mkdir):
            self._directory(op.ino)
        entries[op.name] = op.ino
        return self

    def _detach(self, ino: int) -> None:
        """A directory has one place: where an earlier rename is missing it may stand elsewhere."""
        for directory, entries in list(self.space.items()):
            for name in [name for name, held in entries.items() if held == ino]:
                del self._directory(directory)[name]
