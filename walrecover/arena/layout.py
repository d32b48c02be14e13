"""Where things lie in a slot, and what its words say. Pure.

A slot is written by one process, which may die at any byte, and read by others, which must never
take what is half there for whole. Owns the layout, the slot's header and the judgement on it.

    header   one page, the training process's: words, the completion word written last
    marks    one page, the saver's: which capture it let go of, which it has digested
    job      msgpack: what the capture is, the table of its tensors, the rest of the state
    digests  32 bytes for each row of the table, the saver's
    data     the tensors' bytes; those that this rank writes lie as they will in the shard
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec
import xxhash

from walrecover.errors import Corrupt

PAGE = 4096
MAGIC = b"WALRSLOT"
DIGEST_BYTES = 32
JOB_AT = 2 * PAGE
COMPLETION_AT = len(MAGIC)
_WORDS = struct.Struct("<8sQQQQQQQQ16s")
HEADER_BYTES = _WORDS.size
_END, _WANTED = 1, 2


class Described(NamedTuple):
    """A tensor to be placed. `memory`: equal for tensors that are the same bytes in memory.
    `shared`: all ranks hold it alike. `written`: this rank writes it; else it is only digested,
    since rank 0 writes it for all."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    memory: object
    shared: bool
    written: bool


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in a slot: `offset` from the beginning of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    shared: bool
    written: bool


class Layout(NamedTuple):
    """`table`: the rows in the order given, as the job holds them. `digest`: of the table."""

    rows: tuple[Row, ...]
    data_bytes: int
    table: bytes
    digest: bytes


def lay_out(tensors: Iterable[Described]) -> Layout:
    """Place tensors: those that this rank writes first and without gaps, the largest elements
    before the smaller so that each is aligned; then, from a new page on, the others."""
    given = list(tensors)
    offsets: dict[tuple[object, int, bool], int] = {}
    place = 0
    for written in (True, False):
        place = align(place)
        for tensor in sorted((t for t in given if t.written is written), key=_order):
            key = (tensor.memory, tensor.nbytes, written)
            if not tensor.nbytes:
                offsets[key] = 0
            elif key not in offsets:
                offsets[key] = place
                place += tensor.nbytes
    rows = tuple(
        Row(
            t.name,
            t.dtype,
            t.shape,
            t.nbytes,
            offsets[t.memory, t.nbytes, t.written],
            t.shared,
            t.written,
        )
        for t in given
    )
    table = msgspec.msgpack.encode(rows)
    return Layout(rows, place, table, xxhash.xxh3_128_digest(table))


def _order(tensor: Described) -> tuple[int, str]:
    count = math.prod(tensor.shape)
    return -(tensor.nbytes // count if count else 0), tensor.name


def align(size: int) -> int:
    """The next multiple of a page."""
    return -(-size // PAGE) * PAGE


class Regions(NamedTuple):
    """Offsets in a slot, and how many bytes it must have."""

    digests: int
    data: int
    bytes: int


def regions(job_bytes: int, rows: int, data_bytes: int) -> Regions:
    digests = align(JOB_AT + job_bytes)
    data = align(digests + rows * DIGEST_BYTES)
    return Regions(digests, data, align(data + data_bytes))


# --- the header -----------------------------------------------------------------------------------


class Header(NamedTuple):
    """What a capture says of itself. `generation`: captures of an arena are counted from 1.
    `wanted`: it is to go to disk; else it is only kept in memory. `job_seal`: the job's xxh3-64."""

    generation: int
    step: int
    end: bool
    wanted: bool
    rows: int
    job_bytes: int
    job_seal: int
    data_bytes: int
    layout: bytes

    @property
    def regions(self) -> Regions:
        return regions(self.job_bytes, self.rows, self.data_bytes)


class State(Enum):
    """`torn`: its writer died in it, or its words do not fit: it is never used."""

    FREE = "free"
    FILLING = "filling"
    COMPLETE = "complete"
    TORN = "torn"


class Judged(NamedTuple):
    """`header` only of a complete slot; `reason` only of a torn one."""

    state: State
    header: Header | None = None
    reason: str = ""


def encode(header: Header, *, complete: bool) -> bytes:
    """The words; without the completion word (zero) until everything else is in its place."""
    words = _WORDS.pack(
        MAGIC,
        0,
        header.generation,
        header.step,
        _END * header.end | _WANTED * header.wanted,
        header.rows,
        header.job_bytes,
        header.job_seal,
        header.data_bytes,
        header.layout,
    )
    if not complete:
        return words
    return words[:COMPLETION_AT] + _completion(words).to_bytes(8, "little") + words[16:]


EMPTY = Header(0, 0, False, False, 0, 0, 0, 0, bytes(16))


def completion(header: Header) -> int:
    """The word that says that a slot with this header is whole."""
    return _completion(encode(header, complete=False))


def _completion(words: bytes) -> int:
    """Never zero."""
    return seal(words[:COMPLETION_AT] + words[COMPLETION_AT + 8 :]) | 1


def seal(data: bytes | memoryview) -> int:
    return int(xxhash.xxh3_64_intdigest(data))


def judge(words: bytes, room: int, *, lives: bool) -> Judged:
    """What a slot of `room` bytes holds. `lives`: its writer does; what a dead one was filling is
    torn."""
    if len(words) < HEADER_BYTES or words[:COMPLETION_AT] != MAGIC:
        return Judged(State.TORN, reason="it does not begin as a slot does")
    words = words[:HEADER_BYTES]
    _, done, generation, step, flags, rows, job_bytes, job_seal, data_bytes, layout = _WORDS.unpack(
        words
    )
    if not done:
        if not generation:
            return Judged(State.FREE)
        if lives:
            return Judged(State.FILLING)
        return Judged(State.TORN, reason=f"capture {generation} was never completed")
    if done != _completion(words):
        return Judged(State.TORN, reason="its completion word is not that of its header")
    header = Header(
        generation,
        step,
        bool(flags & _END),
        bool(flags & _WANTED),
        rows,
        job_bytes,
        job_seal,
        data_bytes,
        layout,
    )
    if header.regions.bytes > room:
        return Judged(State.TORN, reason=f"it says {header.regions.bytes} bytes, and has {room}")
    return Judged(State.COMPLETE, header)


# --- what is between two captures -----------------------------------------------------------------


class SlotSeen(NamedTuple):
    """A slot as the training process sees it before a capture. `let_go`: the generation that the
    saver has let go of."""

    number: int
    judged: Judged
    let_go: int


def choose(slots: Sequence[SlotSeen], *, saver_lives: bool) -> int | None:
    """The slot that the next capture may fill, or None while all are held (rule 8).

    A capture that is to go to disk stays until its saver has let go of it or is dead. One that is
    only kept in memory may go, but never the newest capture there is: what is filled is torn until
    it is whole, and a death meanwhile must find the one before.
    """
    generations = [s.judged.header.generation for s in slots if s.judged.header]
    newest = max(generations, default=0)
    found: list[tuple[int, int]] = []
    for slot in slots:
        header = slot.judged.header
        if header is None:
            found.append((0, slot.number))
        elif header.generation != newest and (
            not header.wanted or slot.let_go == header.generation or not saver_lives
        ):
            found.append((header.generation, slot.number))
    return min(found)[1] if found else None


def read_rows(table: Sequence[Row], header: Header) -> tuple[Row, ...]:
    """The table of a job, checked against its header. Raises Corrupt."""
    if len(table) != header.rows:
        raise Corrupt(f"a slot of {header.rows} tensors has a table of {len(table)}")
    for row in table:
        if row.offset < 0 or row.nbytes < 0 or row.offset + row.nbytes > header.data_bytes:
            raise Corrupt(f"{row.name} does not lie in its slot")
    return tuple(table)
