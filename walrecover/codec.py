"""The envelope of an event: what makes a damaged, missing or foreign record show.

Owns the bytes around an encoded event; knows nothing of event types, files or LMDB.

    offset  size  field
    0       4     magic, b"WALR" (no byte of it is zero: zeroed pages never decode)
    4       2     format version, little-endian
    6       2     reserved, zero
    8       8     LSN
    16      4     attempt
    20      16    chain: xxh3-128 of the whole envelope before it (zeros for the first)
    36      4     CRC-32 of bytes 0..36 and the payload
    40      …     payload: one msgpack map

This layout is the same in every format version, so that a newer one can be told from damage:
the CRC is checked first, the version after it.
"""

from __future__ import annotations

import struct
from zlib import crc32

from xxhash import xxh3_128_digest

from walrecover.errors import Corrupt, UnsupportedVersion

MAGIC = b"WALR"
FORMAT = 1
HEADER_BYTES = 40
GENESIS = bytes(16)

_HEAD = struct.Struct("<4sHHQI16s")
HEADER = struct.Struct("<4sHHQI16sI")
_CRC = struct.Struct("<I")

chain_of = xxh3_128_digest
"""The chain digest that the next event carries: xxh3-128 of this event's whole envelope."""


def seal(payload: bytes, *, lsn: int, attempt: int, chain: bytes) -> bytes:
    """Put an encoded event into its envelope. `chain` is `chain_of` the envelope before it."""
    head = _HEAD.pack(MAGIC, FORMAT, 0, lsn, attempt, chain)
    return head + _CRC.pack(crc32(payload, crc32(head))) + payload


def unseal(envelope: bytes, *, lsn: int, attempt: int, chain: bytes | None) -> bytes:
    """The payload of an envelope, after every check.

    `chain` is what the envelope must carry; None where the one before it is not known.
    Raises Corrupt (which check failed, at which LSN) or UnsupportedVersion.
    """
    if len(envelope) < HEADER_BYTES:
        raise Corrupt(f"event {lsn}: {len(envelope)} bytes, shorter than an envelope")
    magic, version, reserved, found_lsn, found_attempt, found_chain, crc = HEADER.unpack_from(
        envelope
    )
    payload = envelope[HEADER_BYTES:]
    if crc32(payload, crc32(envelope[:36])) != crc or magic != MAGIC:
        raise Corrupt(f"event {lsn}: the checksum does not match its bytes")
    if version != FORMAT or reserved:
        raise UnsupportedVersion(
            f"event {lsn}: format {version}, and this release reads format {FORMAT}"
        )
    if found_lsn != lsn or found_attempt != attempt:
        raise Corrupt(
            f"event {lsn} of attempt {attempt}: it says it is {found_lsn} of {found_attempt}"
        )
    if chain is not None and found_chain != chain:
        raise Corrupt(f"event {lsn}: it does not follow the event before it (chain digest differs)")
    return payload
