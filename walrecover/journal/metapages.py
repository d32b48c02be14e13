"""The two meta pages of an LMDB file, read as bytes.

Owns what can be known of an environment without opening it; runs no code of LMDB, so nothing in
the file can kill the process. Knows LMDB 0.9's format, which `environment` pins.

LMDB writes transaction n into meta page n % 2 and opens the newer one. It has no checksum, so a
damaged page makes the older one take over, which would drop the newest group of events in silence.
Hence both pages must hold consecutive transactions, and the newer one more of everything.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from walrecover.errors import Corrupt, StorageFailed, Torn, UnsupportedVersion, WalrecoverError
from walrecover.files import open_regular

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_META_FLAG = 0x08
# page number, pad, flags, lower, upper | magic, version, address, map size | the free list's and
# the main tree's: pad, flags, depth, branch, leaf and overflow pages, entries, root | last page,
# transaction
_META = struct.Struct("<Q4H IIQQ IHHQQQQQ IHHQQQQQ QQ".replace(" ", ""))
_PAGE_SIZES = frozenset(1 << power for power in range(9, 17))
_LARGEST_MAP = 1 << 46  # half of what a process can address
_ATTEMPTS = 20


class _Meta(NamedTuple):
    transaction: int
    last_page: int
    entries: int
    map_bytes: int
    version: int


def inspect(folder: Path) -> WalrecoverError | None:
    """What is wrong with an environment's meta pages and length, or None.

    A living writer may be between the two pages, so a bad first sight is looked at again.
    """
    problem: WalrecoverError | None = None
    for _ in range(_ATTEMPTS):
        try:
            _inspect_once(folder)
            return None
        except FileNotFoundError:
            return Corrupt(f"{folder}: the stream has no data.mdb")
        except OSError as error:
            return StorageFailed(f"{folder}: {error}")
        except (Corrupt, UnsupportedVersion) as error:
            if problem is not None and str(problem) == str(error):
                return problem  # nobody is writing there
            problem = error
            time.sleep(0.001)
    return problem


def _inspect_once(folder: Path) -> None:
    fd = open_regular(folder, "data.mdb")
    try:
        head = os.pread(fd, 2 * max(_PAGE_SIZES), 0)
        length = os.fstat(fd).st_size  # after the pages: a file only grows
    finally:
        os.close(fd)
    page_bytes = _page_size(head, folder)
    pages = sorted(_parse(head, number, page_bytes, folder) for number in (0, 1))
    _check_version(pages[0], pages[1], folder)
    _compare(pages[0], pages[1], folder)
    newest = pages[1]
    needed = (newest.last_page + 1) * page_bytes
    if length < needed:
        raise Torn(f"{folder}: data.mdb has {length} bytes of at least {needed}")
    if not needed <= newest.map_bytes <= _LARGEST_MAP or newest.map_bytes % page_bytes:
        raise Corrupt(f"{folder}: the map's size does not fit the file")


def _page_size(head: bytes, folder: Path) -> int:
    if len(head) < _META.size:
        raise Torn(f"{folder}: data.mdb ends after {len(head)} bytes")
    page_bytes: int = _META.unpack_from(head)[9]
    if page_bytes not in _PAGE_SIZES:
        raise Corrupt(f"{folder}: a page size of {page_bytes} bytes")
    if len(head) < 2 * page_bytes:
        raise Torn(f"{folder}: data.mdb ends after {len(head)} bytes")
    return page_bytes


def _parse(head: bytes, number: int, page_bytes: int, folder: Path) -> _Meta:
    found = _META.unpack_from(head, number * page_bytes)
    page, _, flags, _, _, magic, version, _, map_bytes, size = found[:10]
    entries, last_page, transaction = found[23], found[25], found[26]
    if (page, flags, magic, size) != (number, _META_FLAG, _MAGIC, page_bytes):
        raise Corrupt(f"{folder}: meta page {number} is damaged")
    if transaction % 2 != number:
        raise Corrupt(f"{folder}: meta page {number} holds transaction {transaction}")
    return _Meta(transaction, last_page, entries, map_bytes, version)


def _check_version(one: _Meta, other: _Meta, folder: Path) -> None:
    if one.version != other.version:
        raise Corrupt(f"{folder}: the meta pages are of different formats")
    if one.version != _VERSION:
        raise UnsupportedVersion(
            f"{folder}: LMDB's format {one.version}, and {_VERSION} is read here"
        )


def _compare(older: _Meta, newer: _Meta, folder: Path) -> None:
    if newer.transaction != older.transaction + 1:
        raise Corrupt(
            f"{folder}: the meta pages hold transactions {older.transaction} and "
            f"{newer.transaction}, which do not follow one another"
        )
    # One flipped bit can turn transaction n into n - 2, behind n - 1 in sequence; what it counts
    # gives it away. (A meta page that LMDB took back after a failed write counts more entries
    # than its successor, and fewer pages.)
    if older.entries >= newer.entries and older.last_page >= newer.last_page:
        raise Corrupt(f"{folder}: transaction {older.transaction} counts more than the next one")
