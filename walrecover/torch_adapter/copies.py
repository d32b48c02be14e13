"""Copies of state, made at every boundary: fast, and only of what is small.

Owns the copying of plain values and of small tensors. What is larger stays a reference to living
memory; whoever uses it later must know that it has not moved.
"""

from __future__ import annotations

import collections
import copy
import ctypes
from typing import Any, NamedTuple

import torch

from walrecover.errors import WalrecoverError
from walrecover.torch_adapter import memory

MAX_VALUES = 20_000
"""Of plain values, of all attached objects together: about a third of a millisecond."""

MAX_BYTES = 2 << 20
"""Of tensors, of all attached objects together: a fifth of a millisecond of copying."""

_IMMUTABLE = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}
)
_SEQUENCES = frozenset({list, tuple, set, frozenset, collections.deque})
_MAPPINGS = frozenset({dict, collections.OrderedDict, collections.defaultdict, collections.Counter})


class _Pair(NamedTuple):
    """`host_bytes`: of a tensor that is one piece of host memory, else 0."""

    source: torch.Tensor
    target: torch.Tensor
    host_bytes: int

    @classmethod
    def of(cls, source: torch.Tensor) -> _Pair:
        target = torch.empty_like(source, requires_grad=False)
        one_piece = source.is_cpu and source.is_contiguous() and target.is_contiguous()
        return cls(source, target, target.nbytes if one_piece else 0)


class TooMuch(WalrecoverError):
    """There is more than can be copied at every step."""


class Copies:
    """The copies of one boundary. `ids`: of the tensors and arrays that are copies. `referenced`:
    some were too large for that."""

    def __init__(self, last: Copies | None = None) -> None:
        """`last`: the copies of the boundary before, whose memory is used again."""
        self.ids: set[int] = set()
        self.referenced = False
        self._values = MAX_VALUES
        self._bytes = MAX_BYTES
        self._reusable = {} if last is None else last._pairs
        self._pairs: dict[int, _Pair] = {}

    def of(self, value: Any, name: str) -> Any:
        """A copy of plain values, tensors and arrays, nested, for the object `name`. Raises TooMuch
        for more plain values than MAX_VALUES; a tensor that does not fit is itself in the copy."""
        kind = type(value)
        if kind in _IMMUTABLE:
            return value
        if kind in _SEQUENCES:
            return self._sequence(value, kind, name)
        if kind in _MAPPINGS:
            self._take(len(value), name)
            copied = value.copy()
            if not _IMMUTABLE.issuperset(map(type, value.values())):
                for key, item in value.items():
                    if type(item) not in _IMMUTABLE:
                        copied[key] = self.of(item, name)
            return copied
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if memory.is_array_or_tensor(value):
            return self._array(value)
        if kind is bytearray:
            return bytearray(value)
        return copy.deepcopy(value)  # a NumPy scalar, or what the snapshot will refuse

    def _sequence(self, value: Any, kind: Any, name: str) -> Any:
        self._take(len(value), name)
        if _IMMUTABLE.issuperset(map(type, value)):
            return value if kind is tuple or kind is frozenset else value.copy()
        items = [self.of(item, name) for item in value]
        return collections.deque(items, value.maxlen) if kind is collections.deque else kind(items)

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        """A copy on the same device, made by `finish`; the tensor itself where it is too large."""
        if not self._fits(value.numel() * value.element_size()):
            return value
        if id(value) in self._pairs:  # known by two names
            return self._pairs[id(value)].target
        pair = self._reusable.get(id(value))
        if pair is None or pair.source is not value or not _are_alike(value, pair.target):
            pair = _Pair.of(value)
        self._pairs[id(value)] = pair
        self.ids.add(id(pair.target))
        return pair.target

    def finish(self) -> None:
        """Copy the tensors: on a device all at once, and nothing waits for it."""
        self._reusable = {}
        elsewhere = []
        for pair in self._pairs.values():
            if pair.host_bytes:
                ctypes.memmove(pair.target.data_ptr(), pair.source.data_ptr(), pair.host_bytes)
            else:
                elsewhere.append(pair)
        if elsewhere:
            with torch.no_grad():
                torch._foreach_copy_([p.target for p in elsewhere], [p.source for p in elsewhere])

    def _array(self, value: Any) -> Any:
        if not self._fits(value.nbytes):
            return value
        copied = value.copy()
        self.ids.add(id(copied))
        return copied

    def _fits(self, nbytes: int) -> bool:
        if nbytes > self._bytes:
            self.referenced = True
            return False
        self._bytes -= nbytes
        return True

    def _take(self, count: int, name: str) -> None:
        self._values -= count
        if self._values < 0:
            raise TooMuch(f"{name} makes it more than {MAX_VALUES} plain values")


def is_plain(value: Any) -> bool:
    """Whether a value cannot change: a number, a text, a tuple of them."""
    if type(value) is tuple:
        return _IMMUTABLE.issuperset(map(type, value))
    return type(value) in _IMMUTABLE


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )
