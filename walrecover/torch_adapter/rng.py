"""The global random generators: Python's, NumPy's, torch's on the CPU and on each CUDA device.

Owns capture, restore and digests. A generator is captured where the process uses it: NumPy's only
once numpy is imported, CUDA's only once CUDA is initialised.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from typing import Any

import torch
from xxhash import xxh3_128_digest

from walrecover.errors import Corrupt
from walrecover.torch_adapter.memory import bytes_of

_python = struct.Struct("<625I")
_MT19937_BYTES = 624 * 4 + 4
_numpy_address: int | None = None


def capture() -> dict[str, Any]:
    """The state of every generator in use, as plain values."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": (version, _python.pack(*words), gauss),
        "torch": bytes_of(torch.get_rng_state()),
    }
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        name, key, position, has_gauss, gauss = numpy.get_state()
        state["numpy"] = (name, key.tobytes(), int(position), int(has_gauss), float(gauss))
    if _cuda_in_use():
        for device in range(torch.cuda.device_count()):
            state[f"cuda:{device}"] = bytes_of(torch.cuda.get_rng_state(device))
    return state


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def restore(state: dict[str, Any]) -> None:
    """Set every generator that `capture` found. Raises Corrupt for a state that does not fit."""
    try:
        for name, value in state.items():
            if name == "python":
                version, words, gauss = value
                random.setstate((version, _python.unpack(words), gauss))
            elif name == "torch":
                torch.set_rng_state(_byte_tensor(value))
            elif name == "numpy":
                import numpy as np

                kind, key, *rest = value
                np.random.set_state((kind, np.frombuffer(key, dtype=np.uint32), *rest))
            elif torch.cuda.is_available():
                device = int(name.removeprefix("cuda:"))
                if device < torch.cuda.device_count():
                    torch.cuda.set_rng_state(_byte_tensor(value), device)
    except (ValueError, TypeError, RuntimeError, LookupError, struct.error) as error:
        raise Corrupt(f"random state: {error}") from None


def _byte_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def digests() -> dict[str, bytes]:
    """The digest of every generator's state: a few microseconds, for every step."""
    _version, state, gauss = random.getstate()
    found = {
        "python": xxh3_128_digest(_python.pack(*state) + repr(gauss).encode()),
        "torch": xxh3_128_digest(bytes_of(torch.get_rng_state())),
    }
    if "numpy.random" in sys.modules:
        found["numpy"] = xxh3_128_digest(_numpy_state())
    if _cuda_in_use():
        for device in range(torch.cuda.device_count()):
            state_bytes = bytes_of(torch.cuda.get_rng_state(device))
            found[f"cuda:{device}"] = xxh3_128_digest(state_bytes)
    return found


def _numpy_state() -> bytes:
    """NumPy's legacy state, read in place where it is a Mersenne twister (0.5 against 22 µs)."""
    global _numpy_address
    numpy = sys.modules["numpy.random"]
    if _numpy_address is None:
        generator = numpy.get_bit_generator()
        is_twister = type(generator).__name__ == "MT19937"
        _numpy_address = generator.ctypes.state_address if is_twister else 0
    if _numpy_address:
        return ctypes.string_at(_numpy_address, _MT19937_BYTES)
    return repr(numpy.get_state()).encode()


def set_generator(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(_byte_tensor(state))


def generator_state(generator: torch.Generator) -> bytes:
    return bytes_of(generator.get_state())
