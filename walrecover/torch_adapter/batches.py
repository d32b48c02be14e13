"""The digest of a batch, as a loop hands it out.

Owns which bytes of an item are taken. It is made in the training thread, when the item is fetched
and before the script can change it: later, in another thread, it would be the digest of whatever
the script or a loader that fills one buffer again and again has made of it. So it must be cheap: a
tensor larger than `WHOLE_BYTES` is looked at in `PLACES` places, spread evenly from its first byte
to its last. Form, dtype and order always count. Tensors on a device are not read (that would wait
for it): their form alone counts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from xxhash import xxh3_128

from walrecover.torch_adapter.memory import numpy_or_none

WHOLE_BYTES = 1 << 16
PLACES, PLACE_BYTES = 256, 64
MOST_LEAVES = 512
MOST_DEPTH = 8

_NUMBERS = frozenset({int, float, bool, type(None)})
_PLAIN = _NUMBERS | {str, bytes}


class Batch:
    """The items that a loop has handed out since its last step."""

    def __init__(self) -> None:
        self._hasher: Any = None
        self._left = 0

    def take(self, items: list[Any]) -> None:
        """Items that are bare numbers say no more than the position does."""
        for item in items:
            if type(item) not in _NUMBERS:
                if self._hasher is None:
                    self._hasher = xxh3_128()
                self._left = MOST_LEAVES
                self._walk(item, 0)

    def close(self) -> bytes | None:
        """The digest of all that was taken since the last time; None for nothing."""
        hasher = self._hasher
        if hasher is None:
            return None
        self._hasher = None
        digest: bytes = hasher.digest()
        return digest

    def _walk(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is torch.Tensor:
            self._tensor(value)
        elif kind is list or kind is tuple:
            if depth < MOST_DEPTH:
                self._hasher.update(b"[%d" % len(value))
                for item in value:
                    self._walk(item, depth + 1)
        elif kind in _PLAIN:
            self._left -= 1
            if self._left > 0:
                self._hasher.update(repr(value).encode())
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, tuple):  # a named one
            self._walk(tuple(value), depth)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._walk(key, depth + 1)
                self._walk(item, depth + 1)
        else:
            self._array(value)

    def _tensor(self, value: torch.Tensor) -> None:
        form = (value.dtype, value.shape)
        self._hasher.update(_forms.get(form) or _form(form))
        if not value.is_cpu or value.layout is not torch.strided:
            return
        data = value if value.is_contiguous() else value.detach().contiguous()
        try:
            address, size = data.data_ptr(), data.nbytes
        except RuntimeError:  # a tensor of another kind, with no bytes of its own
            return
        if size:
            self._bytes(address, size)

    def _bytes(self, address: int, size: int) -> None:
        if size > WHOLE_BYTES:
            apart = (size - PLACE_BYTES) // (PLACES - 1)
            flat = torch.frombuffer(_at(address, size), dtype=torch.uint8)
            places = flat.as_strided((PLACES, PLACE_BYTES), (apart, 1)).contiguous()
            self._hasher.update(_at(address + size - PLACE_BYTES, PLACE_BYTES))
            address, size = places.data_ptr(), places.nbytes
        self._hasher.update(_at(address, size))

    def _array(self, value: Any) -> None:
        numpy = numpy_or_none()
        if numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            self._hasher.update(f"{value.dtype}{value.shape}".encode())
            if value.size:
                data = numpy.ascontiguousarray(value)
                self._bytes(data.ctypes.data, data.nbytes)


_forms: dict[Any, bytes] = {}
"""By dtype and shape: batches of a few forms come again and again."""


def _form(form: tuple[torch.dtype, torch.Size]) -> bytes:
    if len(_forms) > MOST_LEAVES:
        _forms.clear()
    return _forms.setdefault(form, f"{form[0]}{tuple(form[1])}".encode())


_spans: dict[int, Any] = {}


def _at(address: int, size: int) -> Any:
    """These bytes, where they lie."""
    kind = _spans.get(size)
    if kind is None:
        if len(_spans) > MOST_LEAVES:
            _spans.clear()
        kind = _spans[size] = ctypes.c_char * size
    return kind.from_address(address)
