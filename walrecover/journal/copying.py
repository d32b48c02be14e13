"""A copy of a stream, made from its events: what a living writer does meanwhile is not in it.

Owns the order of reading and writing. Each event is checked on the way, and read in a short
transaction: LMDB's own copy would hold one open for all of it, during which the writer can reuse no
page. Must not decide how much of a damaged stream is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lmdb

from walrecover.journal import environment as environments
from walrecover.journal.reader import Reader
from walrecover.journal.stream import StreamId, key_of

GROUP = 4096
_PAGE_BYTES = 4096


def copy_stream(
    path: Path,
    stream: StreamId,
    target: Path,
    upto: int,
    *,
    size: int,
    breathe: Callable[[], object] = lambda: None,
) -> None:
    """Make the stream's events through LSN `upto` an environment in the new folder `target`.

    `size`: bytes of the stream's file now. `breathe` is called now and then. Nothing is durable on
    return. Raises as `Reader.read`, StorageFailed where the disk refuses.
    """
    with Reader(path, stream) as reader:
        build_stream(target, _groups(reader, upto, breathe), size=size)


def build_stream(target: Path, groups: Iterable[list[bytes]], *, size: int) -> None:
    """Make envelopes, from LSN 1 on, an environment in the new folder `target`, one transaction for
    each group. `size`: about their bytes. Nothing is durable on return. Raises StorageFailed."""
    try:
        environments.build(target, _numbered(groups), map_size=_map_bytes(size))
    except lmdb.Error as error:
        raise environments.explain(error, target) from error


def _numbered(groups: Iterable[list[bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    lsn = 0
    for group in groups:
        yield [(key_of(lsn + n), envelope) for n, envelope in enumerate(group, 1)]
        lsn += len(group)


def _groups(reader: Reader, upto: int, breathe: Callable[[], object]) -> Iterator[list[bytes]]:
    done = 0
    while done < upto:
        reached = min(done + GROUP, upto)
        yield reader.envelopes(done, reached)
        done = reached
        breathe()


def _map_bytes(size: int) -> int:
    """Room for the same events: the tree that is built may be less dense than the first."""
    return (2 * size // _PAGE_BYTES + 257) * _PAGE_BYTES
