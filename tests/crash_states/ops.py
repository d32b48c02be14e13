"""The typed operations of a recorded run, and ways to change a recording.

Owns: what an operation is. Names are (directory inode, name) and files are inodes, both numbered
by the parser, so that a descriptor follows its file through renames. It must not know strace,
nor which states are legal.

`seq` orders the returns of the calls and `begun` their starts on one clock: two operations
overlapped if one began before the other returned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields

ROOT = 0
EVERYTHING = -1
SETUP_PID = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One thing that happened; `path` is below the root, for people and predicates."""

    seq: int = 0
    begun: int = 0
    pid: int = 1
    path: str = ""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameOp(Op):
    """Changes which inode a name in a directory stands for."""

    dir: int
    name: str
    ino: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(NameOp):
    """A new, empty file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mkdir(NameOp):
    """A new, empty directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlink(NameOp):
    """A name goes away: unlink or rmdir."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(NameOp):
    source_dir: int
    source_name: str
    source: str

    def __str__(self) -> str:
        return f"{self.kind} {self.source} -> {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Moved):
    """A second name; fails where the name is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostLink(Moved):
    """A link that found its name taken. Changes nothing; kept so that `link_to_rename` sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename(Moved):
    """The name moves, replacing what stood there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Op):
    ino: int
    offset: int
    data: bytes

    def __str__(self) -> str:
        return f"write {self.path} {self.offset}+{len(self.data)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(Op):
    """Sets the size, up or down."""

    ino: int
    size: int

    def __str__(self) -> str:
        return f"truncate {self.path} {self.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync(Op):
    """Makes durable what returned before it began.

    `extent` limits it to a byte range: a write through an O_DSYNC descriptor is a Write followed
    by a Sync of what it wrote. `ino` EVERYTHING is sync(2).
    """

    ino: int
    how: str = "fsync"
    directory: bool = False
    extent: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.how} {self.path}{'/' if self.directory else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(Op):
    """The program told the world something that must be true from here on."""

    text: str

    def __str__(self) -> str:
        return f"ack {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Op):
    """The recording ended. Put there by the model, as a place for a crash after everything."""


Predicate = Callable[[Op], bool]


def without(ops: Iterable[Op], predicate: Predicate) -> list[Op]:
    """The recording as if these calls had been left out; the setup of the root stays."""
    return [op for op in ops if op.pid == SETUP_PID or not predicate(op)]


def replace(
    ops: Iterable[Op], predicate: Predicate, make: Callable[[Op], Op | Sequence[Op]]
) -> list[Op]:
    """The recording with other operations in the place of these, in their order in time."""
    changed: list[Op] = []
    for op in ops:
        made = make(op) if op.pid != SETUP_PID and predicate(op) else op
        for new in [made] if isinstance(made, Op) else made:
            changed.append(with_fields(new, seq=op.seq, begun=op.begun))
    return changed


def link_to_rename(op: Op) -> Op:
    """What `rename` would have done in place of this link, also where the link was refused."""
    if not isinstance(op, Link | LostLink):
        raise TypeError(f"not a link: {op}")
    return Rename(
        pid=op.pid, path=op.path, source=op.source, dir=op.dir, name=op.name, ino=op.ino,
        source_dir=op.source_dir, source_name=op.source_name,
    )  # fmt: skip


def is_file_sync(op: Op) -> bool:
    return isinstance(op, Sync) and not op.directory


def is_directory_sync(op: Op) -> bool:
    return isinstance(op, Sync) and op.directory


def default_row(op: Op) -> str:
    """A crash-table row for an operation: its kind and its path without what varies by run."""
    if isinstance(op, Ack | End):
        return op.kind
    kind = op.how if isinstance(op, Sync) else op.kind
    parts = [re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", part) for part in op.path.split("/")]
    return f"{kind} {'/'.join(parts)}{'/' if isinstance(op, Sync) and op.directory else ''}"
