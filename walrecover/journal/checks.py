"""The checks of `codec.unseal`, over many envelopes at once.

Owns the fast path of reading; what it does not accept at once, `codec.unseal` judges, so the two
accept and refuse the same bytes. Must not decode payloads or know where envelopes come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple
from zlib import crc32

from walrecover import codec
from walrecover.codec import FORMAT, HEADER_BYTES, MAGIC, chain_of, unseal
from walrecover.errors import WalrecoverError

_CRC_OFFSET = HEADER_BYTES - 4
_header_of = codec.HEADER.pack
_starts_with = bytes.startswith


class Checked(NamedTuple):
    """The good envelopes before the first bad one.

    `chains` holds the digest behind each payload; `problem` is what is wrong with the next one.
    """

    payloads: list[bytes]
    chains: list[bytes]
    problem: WalrecoverError | None = None


def check(envelopes: Sequence[bytes], *, first: int, attempt: int, chain: bytes) -> Checked:
    """Check envelopes that should be the events from LSN `first` on, behind `chain`."""
    payloads = [envelope[HEADER_BYTES:] for envelope in envelopes]
    chains = list(map(chain_of, envelopes))
    # What each header must be, if its payload, its head and the event before it are what they
    # seem: one comparison stands for all checks, and each of these loops runs in C.
    headers = map(
        _header_of,
        repeat(MAGIC),
        repeat(FORMAT),
        repeat(0),
        range(first, first + len(envelopes)),
        repeat(attempt),
        [chain, *chains],
        map(crc32, payloads, map(crc32, [envelope[:_CRC_OFFSET] for envelope in envelopes])),
    )
    if all(map(_starts_with, envelopes, headers)):
        return Checked(payloads, chains)
    return _check_each(envelopes, first, attempt, chain)


def _check_each(envelopes: Sequence[bytes], first: int, attempt: int, chain: bytes) -> Checked:
    good = Checked([], [])
    for lsn, envelope in enumerate(envelopes, first):
        try:
            payload = unseal(envelope, lsn=lsn, attempt=attempt, chain=chain)
        except WalrecoverError as problem:
            return good._replace(problem=problem)
        chain = chain_of(envelope)
        good.payloads.append(payload)
        good.chains.append(chain)
    return good
