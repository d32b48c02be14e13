"""The rows of the crash table (specs/05-crash-safety.md) that a recorded operation belongs to.

Owns: the names of the rows, and reading them off a recording of `workload`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from posixpath import basename, dirname

from . import ops

FOLDERS = "a run's folders"
STREAM = "an event: stream created"
GROUP = "an event: group committed"
SYNC = "an event: synced"
TENSORS = "a shard: tensors"
PLAIN = "a shard: plain"
VOTE = "a vote"
MANIFEST = "a manifest"
ATTEMPT = "an entry: attempt"
COMMIT = "an entry: commit"
RETIREMENT = "an entry: retirement"
DELETION = "deletion"
FOLD = "a fold cache"
END = "nothing: the program has ended"
ROWS = (
    FOLDERS, STREAM, GROUP, SYNC, TENSORS, PLAIN, VOTE, MANIFEST, ATTEMPT, COMMIT, RETIREMENT,
    DELETION, FOLD, END,
)  # fmt: skip

_META_BYTES = 8192
_ENTRIES = {"attempt": ATTEMPT, "commit": COMMIT, "retirement": RETIREMENT}
_ACKS = {"attempt": ATTEMPT, "event": SYNC, "vote": VOTE, "commit": COMMIT, "retired": DELETION}
_SHARDS = {".safetensors": TENSORS, ".msgpack": PLAIN, ".part": VOTE, "manifest.json": MANIFEST}


def rows(operations: Sequence[ops.Op]) -> Callable[[ops.Op], str]:
    """The row of each of these operations, which keep it through `without` and `replace`."""
    named = _Namer(operations).named
    return lambda op: END if isinstance(op, ops.End) else named[op.seq, op.pid]


class _Namer:
    def __init__(self, operations: Sequence[ops.Op]) -> None:
        self._ops = operations
        self._places = {id(op): place for place, op in enumerate(operations)}
        self._files = dict[int, str]()  # by inode, where the path does not say it
        self._meta_last = set[int]()
        self._before = dict[int, ops.Op]()
        for op in operations:
            self._learn(op)
        self.named = dict[tuple[int, int], str]()
        for op in operations:
            self.named.setdefault((op.seq, op.pid), self._name(op))
            self._before[op.pid] = op

    def _learn(self, op: ops.Op) -> None:
        """What an entry is stands in it; a shard of tensors gets its name when it is renamed."""
        if isinstance(op, ops.Write) and "/sequence/" in op.path:
            found = re.search(rb'"type": "(\w+)"', op.data)
            if found is None:
                json.loads(op.data)  # says where it is no entry
                raise ValueError(f"no type in {op.path}")
            self._files[op.ino] = _ENTRIES[found[1].decode()]
        elif isinstance(op, ops.Rename) and op.path.endswith(".safetensors"):
            self._files[op.ino] = TENSORS

    def _name(self, op: ops.Op) -> str:
        if isinstance(op, ops.Ack):
            return _ACKS[op.text.split()[0]]
        if isinstance(op, ops.Sync) and op.directory:
            return self._of_folder(op)
        if isinstance(op, ops.NameOp | ops.Write | ops.Truncate | ops.Sync):
            gone = isinstance(op, ops.Unlink) and not basename(op.path).startswith(".")
            return DELETION if gone else self._files.get(op.ino) or self._of_file(op, op.ino)
        raise ValueError(f"in no row: {op}")

    def _of_folder(self, op: ops.Sync) -> str:
        """That of the change just made in it by its own thread, or else of the next one."""
        if basename(op.path).startswith(".rank-"):
            return STREAM
        before = self._before.get(op.pid)
        if isinstance(before, ops.NameOp) and before.dir == op.ino:
            return self.named[before.seq, before.pid]
        for other in self._ops[self._places[id(op)] :]:
            if other.pid == op.pid and isinstance(other, ops.NameOp):
                return self._name(other) if other.dir == op.ino else FOLDERS
        return FOLDERS

    def _of_file(self, op: ops.Op, ino: int) -> str:
        above, name = dirname(op.path), basename(op.path)
        if ".fold" in name:
            return FOLD
        if "/journal/" in f"{op.path}/" and "/rank-" in op.path.replace("/.rank-", "/rank-"):
            if "/.rank-" in op.path or isinstance(op, ops.Rename):
                return STREAM
            return self._of_stream(op, ino)
        if "/snapshots/" in above:
            return next(row for part, row in _SHARDS.items() if part in name)
        return FOLDERS

    def _of_stream(self, op: ops.Op, ino: int) -> str:
        """A group is its pages, their sync and the meta page; another sync makes it durable."""
        if isinstance(op, ops.Sync):
            return SYNC if ino in self._meta_last else GROUP
        if isinstance(op, ops.Write) and op.offset < _META_BYTES:
            self._meta_last.add(ino)
        else:
            self._meta_last.discard(ino)
        return GROUP
