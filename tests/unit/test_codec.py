"""The envelope: damage shows, whatever byte it hits; a newer format is told from damage."""

from __future__ import annotations

import random
import struct
from zlib import crc32

import pytest
from xxhash import xxh3_128_digest

from walrecover import codec
from walrecover.codec import GENESIS, chain_of, seal, unseal
from walrecover.errors import Corrupt, UnsupportedVersion, WalrecoverError
from walrecover.journal.checks import check

PAYLOAD = b"\x82\xa4type\xabRunFinished\xa4step\x07"
CHAIN = bytes(range(16))
GOLDEN = (
    "57414c52"  # magic
    "0100"  # format
    "0000"  # reserved
    "0500000000000000"  # LSN
    "03000000"  # attempt
    "000102030405060708090a0b0c0d0e0f"  # chain
    "66a42efa"  # CRC-32
    "82a474797065ab52756e46696e6973686564a47374657007"
)


def _good() -> bytes:
    return seal(PAYLOAD, lsn=5, attempt=3, chain=CHAIN)


def _resealed(head: bytes) -> bytes:
    """An envelope with this head and a checksum that fits."""
    return head + struct.pack("<I", crc32(PAYLOAD, crc32(head))) + PAYLOAD


def test_the_envelope_has_its_golden_bytes() -> None:
    assert _good().hex() == GOLDEN


def test_the_layout_is_the_documented_one() -> None:
    envelope = _good()
    assert struct.unpack("<4sHHQI16sI", envelope[:40]) == (
        *(b"WALR", 1, 0, 5, 3, CHAIN),
        crc32(envelope[:36] + envelope[40:]),
    )
    assert envelope[40:] == PAYLOAD
    assert chain_of(envelope) == xxh3_128_digest(envelope)


def test_unseal_gives_the_payload_back() -> None:
    assert unseal(_good(), lsn=5, attempt=3, chain=CHAIN) == PAYLOAD
    assert unseal(_good(), lsn=5, attempt=3, chain=None) == PAYLOAD


def test_every_single_bit_flip_is_refused() -> None:
    good = _good()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            unseal(bytes(bad), lsn=5, attempt=3, chain=CHAIN)


@pytest.mark.parametrize("length", [0, 1, 39, 40, 41, 64, 4096])
def test_zeroed_bytes_never_decode(length: int) -> None:
    for lsn, attempt, chain in ((5, 3, CHAIN), (0, 0, GENESIS), (0, 0, None)):
        with pytest.raises(Corrupt):
            unseal(bytes(length), lsn=lsn, attempt=attempt, chain=chain)


def test_every_truncation_is_refused() -> None:
    good = _good()
    for length in range(len(good)):
        with pytest.raises(Corrupt):
            unseal(good[:length], lsn=5, attempt=3, chain=CHAIN)


@pytest.mark.parametrize(
    ("lsn", "attempt", "chain"), [(6, 3, CHAIN), (5, 4, CHAIN), (5, 3, GENESIS)]
)
def test_a_whole_envelope_in_the_wrong_place_is_refused(
    lsn: int, attempt: int, chain: bytes
) -> None:
    with pytest.raises(Corrupt):
        unseal(_good(), lsn=lsn, attempt=attempt, chain=chain)


@pytest.mark.parametrize("head", ["57414c5202000000", "57414c5201000100", "57414c52ffff0000"])
def test_a_newer_format_is_unsupported_and_not_corrupt(head: str) -> None:
    newer = _resealed(bytes.fromhex(head) + _good()[8:36])
    with pytest.raises(UnsupportedVersion):
        unseal(newer, lsn=5, attempt=3, chain=CHAIN)


def _verdict(envelope: bytes) -> tuple[object, ...]:
    try:
        return ("good", unseal(envelope, lsn=5, attempt=3, chain=CHAIN))
    except WalrecoverError as error:
        return (type(error), str(error))


def _fast_verdict(envelope: bytes) -> tuple[object, ...]:
    found = check([envelope], first=5, attempt=3, chain=CHAIN)
    if found.problem is not None:
        assert not found.payloads and not found.chains
        return (type(found.problem), str(found.problem))
    assert found.chains == [chain_of(envelope)]
    return ("good", found.payloads[0])


def test_the_fast_checks_accept_and_refuse_what_unseal_does(
    random_source: random.Random,
) -> None:
    good = _good()
    heads = [good[:36], b"WALS" + good[4:36], good[:4] + b"\2" + good[5:36]]
    heads += [good[:6] + b"\1" + good[7:36], good[:8] + b"\6" + good[9:36]]
    heads += [good[:16] + b"\4" + good[17:36], good[:20] + bytes(16)]
    cases = [good, b"", bytes(39), bytes(40), good[:40], good + b"\0", *map(_resealed, heads)]
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(bad))
    for _ in range(2000):
        bad = bytearray(random_source.choice(cases))
        for _ in range(random_source.randrange(4)):
            if bad:
                bad[random_source.randrange(len(bad))] = random_source.randrange(256)
        cases.append(bytes(bad[: random_source.randrange(len(bad) + 1)] if len(bad) % 5 else bad))
    assert sum(_verdict(case)[0] == "good" for case in cases) >= 2
    for case in cases:
        assert _fast_verdict(case) == _verdict(case), case.hex()


def test_the_fast_checks_stop_at_the_first_bad_envelope() -> None:
    chain, envelopes = GENESIS, []
    for lsn in range(1, 8):
        envelopes.append(seal(PAYLOAD, lsn=lsn, attempt=3, chain=chain))
        chain = chain_of(envelopes[-1])
    whole = check(envelopes, first=1, attempt=3, chain=GENESIS)
    assert whole.problem is None and whole.payloads == [PAYLOAD] * 7 and whole.chains[-1] == chain
    for index in range(7):
        damaged = list(envelopes)
        damaged[index] = damaged[index][:-1] + b"\x08"
        found = check(damaged, first=1, attempt=3, chain=GENESIS)
        assert isinstance(found.problem, Corrupt)
        assert len(found.payloads) == len(found.chains) == index
    # One event left out, and one twice.
    assert len(check(envelopes[:3] + envelopes[4:], first=1, attempt=3, chain=GENESIS).chains) == 3
    twice = envelopes[:3] + envelopes[2:]
    assert len(check(twice, first=1, attempt=3, chain=GENESIS).chains) == 3


def test_format_and_magic_are_pinned() -> None:
    assert (codec.MAGIC, codec.FORMAT, codec.HEADER_BYTES) == (b"WALR", 1, 40)
    assert 0 not in codec.MAGIC


@pytest.fixture
def random_source(request: pytest.FixtureRequest) -> random.Random:
    """Seeded; the seed is printed when the test fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)
