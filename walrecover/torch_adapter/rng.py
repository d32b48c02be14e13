"""The global random generators: Python's, NumPy's, torch's on the CPU and on each CUDA device.

Owns capture, restore and digests. A generator is captured where the process uses it: NumPy's only
once numpy is imported, CUDA's only once CUDA is initialised.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable
from typing import Any

import torch
from blake3 import blake3
from xxhash import xxh3_128_digest

from walrecover.errors import Corrupt
from walrecover.torch_adapter import twisters
from walrecover.torch_adapter.memory import bytes_of
from walrecover.torch_adapter.twisters import INDEX, WORDS

VERSION = random.getstate()[0]
TWISTER = "MT19937"
SEED = struct.Struct(f"<Q{WORDS.size}s{WORDS.size}s")  # torch's, Python's and NumPy's
ALL_LEFT = INDEX.pack(624)
_CUDA_BUILT = bool(torch.version.cuda or torch.version.hip)


def capture() -> dict[str, Any]:
    """The state of every generator in use, as plain values: a few microseconds, for every step."""
    read = twisters.python()
    python = packed_python(random.getstate()) if read is None else (VERSION, *read)
    state: dict[str, Any] = {
        "python": python,
        "torch": bytes_of(torch.default_generator.get_state()),
    }
    module = sys.modules.get("numpy.random")
    if module is not None:
        state["numpy"] = _numpy(module)
    if _CUDA_BUILT and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for device in range(torch.cuda.device_count()):
            state[f"cuda:{device}"] = bytes_of(torch.cuda.get_rng_state(device))
    return state


def packed_python(state: Any) -> tuple[Any, ...]:
    """What `random.getstate` gives, packed, the index first."""
    version, (*words, index), gauss = state
    return (version, INDEX.pack(index) + WORDS.pack(*words), gauss)


def _numpy(module: Any) -> tuple[Any, ...]:
    """As `numpy.random.get_state`, its numbers packed; JSON of any generator but the usual one."""
    read = twisters.numpy(module)
    if read is not None:
        return (TWISTER, *read)
    return packed_numpy(module.get_state(legacy=False))


def packed_numpy(state: dict[str, Any]) -> tuple[Any, ...]:
    """What `numpy.random.get_state(legacy=False)` gives, packed."""
    if state["bit_generator"] != TWISTER:
        return (state["bit_generator"], json.dumps(state, default=lambda array: array.tolist()))
    words, index = state["state"]["key"], state["state"]["pos"]
    packed = words.tobytes() + INDEX.pack(index)
    return (TWISTER, packed, int(state["has_gauss"]), float(state["gauss"]))


def restore(state: dict[str, Any]) -> None:
    """Set every generator that `capture` found. Raises Corrupt for a state that does not fit."""
    try:
        for name, value in state.items():
            if name == "python":
                version, packed, gauss = value
                index, words = INDEX.unpack_from(packed), WORDS.unpack_from(packed, INDEX.size)
                random.setstate((version, words + index, gauss))
            elif name == "torch":
                torch.set_rng_state(_byte_tensor(value))
            elif name == "numpy":
                _restore_numpy(*value)
            elif torch.cuda.is_available():
                device = int(name.removeprefix("cuda:"))
                if device < torch.cuda.device_count():
                    torch.cuda.set_rng_state(_byte_tensor(value), device)
    except (ValueError, TypeError, RuntimeError, LookupError, struct.error) as error:
        raise Corrupt(f"random state: {error}") from None


def _byte_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _restore_numpy(kind: str, packed: Any, *rest: Any) -> None:
    import numpy as np

    if kind == TWISTER:
        words = np.frombuffer(packed, np.uint32, WORDS.size // 4)
        np.random.set_state((kind, words, *INDEX.unpack_from(packed, WORDS.size), *rest))
    else:
        np.random.set_state(json.loads(packed))


def digests(captured: dict[str, Any]) -> dict[str, bytes]:
    """The digest of every generator's state, from `capture`."""
    return {name: xxh3_128_digest(_bytes(state)) for name, state in captured.items()}


def _bytes(state: Any) -> bytes:
    if isinstance(state, bytes):
        return state
    _, packed, *rest = state
    return (packed if isinstance(packed, bytes) else packed.encode()) + repr(rest).encode()


def first_seed() -> int:
    """What torch's generator was seeded with: what a script that seeds has in common with its
    other starts. Below 2**63."""
    return int(torch.initial_seed()) & (1 << 63) - 1


def seed(key: bytes) -> None:
    """Put Python's, NumPy's and torch's CPU generator into the states that are the key's.

    Python's and NumPy's are the words of a Mersenne twister, all still to be used; NumPy's global
    generator is left alone where a script has made it another one. Written where they lie: seeding
    costs three times as much as drawing the words.
    """
    drawn = blake3(key).digest(length=SEED.size)
    first, python, numpy = SEED.unpack(drawn)
    torch.default_generator.manual_seed(first)
    if twisters.python() is not None:
        twisters.set_python((ALL_LEFT + python, None))
    else:
        restore({"python": (VERSION, ALL_LEFT + python, None)})
    module = sys.modules.get("numpy.random")
    if module is None:
        return
    if twisters.numpy(module) is not None:
        twisters.set_numpy(module, (numpy + ALL_LEFT, 0, 0.0))
    elif module.get_state(legacy=False)["bit_generator"] == TWISTER:
        restore({"numpy": (TWISTER, numpy + ALL_LEFT, 0, 0.0)})


def seeded(key: bytes, call: Callable[[Any], Any], argument: Any) -> Any:
    """What `call` returns under `seed`; behind it the generators are as they were before.

    For every batch that the training thread loads itself: a tenth of `capture` and `restore`.
    """
    module = sys.modules.get("numpy.random")
    python, numpy = twisters.python(), None if module is None else twisters.numpy(module)
    slow: dict[str, Any] = {}
    if python is None or (numpy is None and module is not None):
        slow = {"python": packed_python(random.getstate())} | (
            {} if module is None else {"numpy": _numpy(module)}
        )
    own = torch.default_generator.get_state()
    seed(key)
    try:
        return call(argument)
    finally:
        torch.default_generator.set_state(own)
        if slow:
            restore(slow)
        elif python is not None:
            twisters.set_python(python)
            if numpy is not None:
                twisters.set_numpy(module, numpy)


def set_generator(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(_byte_tensor(state))


def generator_state(generator: torch.Generator) -> bytes:
    return bytes_of(generator.get_state())
