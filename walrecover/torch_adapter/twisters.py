"""The state of Python's and NumPy's global Mersenne twisters, read where it lies in memory.

Every step needs it, and `random.getstate` and `numpy.random.get_state` build a number object for
each word: 10 and 32 µs, where reading the memory takes one. Where the state lies in an object is
found by looking for a known one in a generator of our own; where it is not found just once (a
Python or NumPy that keeps it otherwise), these functions return None and the caller asks the
generator.
"""

from __future__ import annotations

import ctypes
import random
import struct
from functools import cache
from typing import Any

WORDS = struct.Struct("<624I")
INDEX = struct.Struct("<I")  # how many of the words are used up
BYTES = INDEX.size + WORDS.size
PENDING = struct.Struct("<i4xd")  # whether the second normal number of a pair waits, and which


def python() -> tuple[bytes, float | None] | None:
    """The state behind `random.random` and its like: the index and the words behind it, and the
    normal number that waits for its call."""
    memory = _of_python()
    if memory is None:
        return None
    return memory.raw, random._inst.gauss_next  # type: ignore[attr-defined]


def numpy(module: Any) -> tuple[bytes, int, float] | None:
    """The state behind `numpy.random.rand` and its like: the words and the index behind them,
    whether a normal number waits for its call, and which. `module`: numpy.random."""
    try:
        generator = module.mtrand._rand
        found = _of_numpy(module, generator, generator._bit_generator)
    except AttributeError:
        return None  # another NumPy, or one that is being imported
    if found is None:
        return None
    words, pending = found
    return words.raw, *PENDING.unpack(pending)


def set_python(read: tuple[bytes, float | None]) -> None:
    """Put back what `python` has read."""
    memory = _of_python()
    assert memory is not None
    memory.raw, random._inst.gauss_next = read  # type: ignore[attr-defined]


def set_numpy(module: Any, read: tuple[bytes, int, float]) -> None:
    """Put back what `numpy` has read."""
    generator = module.mtrand._rand
    found = _of_numpy(module, generator, generator._bit_generator)
    assert found is not None
    words, pending = found
    words.raw = read[0]
    pending.raw = PENDING.pack(*read[1:])


@cache
def _of_python() -> ctypes.Array[ctypes.c_char] | None:
    known = random.Random(20_000)
    known.random()
    *words, index = known.getstate()[1]
    place = _place_of(INDEX.pack(index) + WORDS.pack(*words), known)
    return None if place is None else _memory(id(random._inst) + place, BYTES)


@cache
def _of_numpy(
    module: Any, generator: Any, bits: Any
) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]] | None:
    """The words of the bit generator, and where a `RandomState` keeps the number that waits."""
    known = module.RandomState(20_000)
    known.standard_normal()
    _, words, index, has_gauss, gauss = known.get_state()
    place = _place_of(PENDING.pack(has_gauss, gauss), known)
    mine = _memory(known._bit_generator.ctypes.state_address, BYTES)
    if type(bits) is not module.MT19937 or place is None:
        return None
    if mine.raw != words.tobytes() + INDEX.pack(index):
        return None
    pending = _memory(id(generator) + place, PENDING.size)
    return _memory(bits.ctypes.state_address, BYTES), pending


def _place_of(pattern: bytes, known: Any) -> int | None:
    memory = _memory(id(known), type(known).__basicsize__).raw
    return memory.find(pattern) if memory.count(pattern) == 1 else None


def _memory(address: int, size: int) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * size).from_address(address)
