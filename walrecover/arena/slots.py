"""A slot in shared memory: filled by the training process, read and marked by the saver.

Owns the order in which words are written, on which everything rests (specs/18-arena.md). Knows no
torch, and not where the tensors' bytes come from.

The two processes share no lock. Each word has one writer, and is stored at once; between two
stores, and around every copy, Python takes its interpreter lock, which is a barrier to both sides.
"""

from __future__ import annotations

import ctypes
from typing import Any

import msgspec
from blake3 import blake3

from walrecover.arena import layout
from walrecover.arena.layout import (
    COMPLETION_AT,
    DIGEST_BYTES,
    HEADER_BYTES,
    JOB_AT,
    PAGE,
    Header,
    Judged,
    Layout,
    Row,
    SlotSeen,
    State,
)
from walrecover.errors import Corrupt

_LET_GO, _DIGESTED, _DIGESTS_SEAL = 0, 8, 16


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A capture without its tensors' bytes: the fields of `snapshot.Capture`, `lsn`: how far the
    rank's stream had come, `finished`: it is the end of the run."""

    run: str
    step: int
    end: bool
    attempt: int
    nonce: str
    rank: int
    world: int
    base: str
    position: str
    writer: str
    events_after: int
    lsn: int
    finished: bool
    tree: msgspec.Raw
    table: msgspec.Raw


_decoder = msgspec.msgpack.Decoder(Job)
_table = msgspec.msgpack.Decoder(tuple[Row, ...])


class TooLarge(Exception):
    """The capture does not fit into a slot. `bytes`: what it would need."""

    def __init__(self, bytes: int, room: int) -> None:
        super().__init__(f"the capture needs {bytes} bytes, and a slot has {room}")
        self.bytes = bytes


class Slot:
    """One slot, at an address of this process's memory. It must not outlive the arena."""

    def __init__(self, number: int, address: int, room: int) -> None:
        self.number, self.address, self.room = number, address, room
        self._completion = ctypes.c_uint64.from_address(address + COMPLETION_AT)
        marks = address + PAGE
        self._let_go = ctypes.c_uint64.from_address(marks + _LET_GO)
        self._digested = ctypes.c_uint64.from_address(marks + _DIGESTED)
        self._digests_seal = ctypes.c_uint64.from_address(marks + _DIGESTS_SEAL)

    def format(self) -> None:
        """Make it an empty slot; in memory that is all zeros."""
        self._store(self.address, layout.encode(layout.EMPTY, complete=False))

    # -- the training process ------------------------------------------------------------------

    def begin(self, header: Header) -> int:
        """From here on the slot holds nothing, until `complete`. Returns where the data goes.
        Raises TooLarge, and then has changed nothing."""
        needed = header.regions.bytes
        if needed > self.room:
            raise TooLarge(needed, self.room)
        self._completion.value = 0
        self._store(self.address, layout.encode(header, complete=False))
        return self.address + header.regions.data

    def put_job(self, job: bytes) -> None:
        self._store(self.address + JOB_AT, job)

    def complete(self, header: Header) -> None:
        """Everything is in its place."""
        self._completion.value = layout.completion(header)

    @property
    def let_go(self) -> int:
        """The generation that the saver has let go of last."""
        return self._let_go.value

    def seen(self) -> SlotSeen:
        return SlotSeen(self.number, self.judge(lives=True), self.let_go)

    # -- the saver -----------------------------------------------------------------------------

    def judge(self, *, lives: bool) -> Judged:
        """What it holds. A slot that is being changed meanwhile reads as filling or torn."""
        return layout.judge(self._read(self.address, HEADER_BYTES), self.room, lives=lives)

    def is_still(self, header: Header) -> bool:
        """Whether it is whole and holds that very capture (rule 8: asked before a vote)."""
        found = self.judge(lives=True)
        return found.state is State.COMPLETE and found.header == header

    def job(self, header: Header) -> tuple[Job, tuple[Row, ...]]:
        """Raises Corrupt where the bytes are not those that were sealed."""
        data = self._read(self.address + JOB_AT, header.job_bytes)
        if layout.seal(data) != header.job_seal:
            raise Corrupt(f"slot {self.number}: its job is not the one that was sealed")
        try:
            job = _decoder.decode(data)
            return job, layout.read_rows(_table.decode(job.table), header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"slot {self.number}: {error}") from None

    def data_address(self, header: Header) -> int:
        return self.address + header.regions.data

    def set_digests(self, header: Header, digests: list[bytes]) -> None:
        """Keep the digest of each row of the table."""
        data = b"".join(digests)
        if len(data) != header.rows * DIGEST_BYTES:
            raise ValueError(f"{len(digests)} digests for {header.rows} tensors")
        self._digested.value = 0
        self._store(self.address + header.regions.digests, data)
        self._digests_seal.value = _seal_of(header, data)
        self._digested.value = header.generation

    def digests(self, header: Header) -> list[bytes] | None:
        """What was digested of this capture since it was completed, or None."""
        if self._digested.value != header.generation:
            return None
        data = self._read(self.address + header.regions.digests, header.rows * DIGEST_BYTES)
        if self._digests_seal.value != _seal_of(header, data):
            return None
        return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]

    def release(self, header: Header) -> None:
        """The training process may fill it again."""
        self._let_go.value = header.generation

    # -- bytes ---------------------------------------------------------------------------------

    @staticmethod
    def _store(address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    @staticmethod
    def _read(address: int, nbytes: int) -> bytes:
        return ctypes.string_at(address, nbytes)


def _seal_of(header: Header, digests: bytes) -> int:
    return layout.seal(header.generation.to_bytes(8, "little") + digests)


def view(address: int, nbytes: int) -> memoryview:
    """Bytes of this process's memory, without a copy."""
    if not nbytes:
        return memoryview(b"")
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def encode_job(fields: dict[str, Any], tree: Any, placed: Layout) -> bytes:
    """The job's bytes. `fields`: those of `Job`, without the tree and the table."""
    return msgspec.msgpack.encode(
        Job(
            tree=msgspec.Raw(msgspec.msgpack.encode(tree)),
            table=msgspec.Raw(placed.table),
            **fields,
        )
    )


def digest(data: memoryview) -> bytes:
    return bytes(blake3(data).digest())
