"""Leaves of a state tree: tensors, arrays and torch's own small types, to the wire form and back.

Owns what `plain` leaves to its caller. Tensors go beside the tree, into shards; a state that has
no shard of its own (a loader's) holds them within.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from walrecover import plain
from walrecover.errors import Corrupt
from walrecover.plain import Unstorable
from walrecover.shards import TensorData
from walrecover.torch_adapter import memory

StoredTensors = Mapping[str, tuple[torch.Tensor, str, tuple[int, ...]]]
_KEY = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\"|([^\]]*))\]")


def leaf_into(tensors: dict[str, TensorData], *, far: bool = False) -> plain.Leaf:
    """A leaf that puts tensors into `tensors`, under the name that their path gives them. `far`:
    those of a device may stay there."""

    def leaf(value: Any, path: str) -> tuple[str, Any]:
        if isinstance(value, torch.Tensor):
            name = _keep(memory.tensor_data(value, path, far=far), path)
            return "tensor", [name, str(value.device), memory.strides_of(value)]
        if isinstance(value, torch.Size):
            return "size", list(value)
        if isinstance(value, torch.dtype):
            return "dtype", str(value).removeprefix("torch.")
        if isinstance(value, torch.device):
            return "device", str(value)
        numpy = memory.numpy_or_none()
        if numpy is not None:
            if isinstance(value, numpy.ndarray):
                return "array", _keep(memory.array_data(value, path), path)
            if isinstance(value, numpy.generic):
                if value.dtype.hasobject or value.dtype.names:
                    raise Unstorable(f"{path} is a {value.dtype}, which a snapshot cannot hold")
                return "scalar", [value.dtype.str, value.tobytes()]
        return plain.refuse(value, path)

    def _keep(data: TensorData, path: str) -> str:
        name = base = _name_of(path)
        count = 1
        while name in tensors:
            count += 1
            name = f"{base}~{count}"
        tensors[name] = data
        return name

    return leaf


def _name_of(path: str) -> str:
    return _KEY.sub(lambda m: "." + next(g for g in m.groups() if g is not None), path)


def build_from(tensors: StoredTensors, *, borrowed: bool = False) -> plain.Build:
    """What builds the leaves again. Every tensor comes as a copy of its own; or `borrowed`, for
    whoever only reads it: then of the host's memory it is what was stored."""

    def build(kind: str, payload: Any) -> Any:
        if kind == "tensor":
            name, device, strides = payload
            stored = memory.as_tensor(*tensors[name])
            tensor = memory.with_strides(stored, strides, borrowed=borrowed)
            return tensor.to(device) if _available(device) else tensor
        if kind == "array":
            return memory.as_array(*tensors[payload])
        if kind == "size":
            return torch.Size(payload)
        if kind == "dtype":
            return memory.dtype_of(payload)
        if kind == "device":
            return torch.device(payload)
        if kind == "scalar":
            return memory.as_scalar(*payload)
        raise Corrupt(f"plain state: nothing builds a {kind!r}")

    return build


def inline(value: Any, path: str) -> tuple[str, Any]:
    """A leaf that holds its bytes in the tree."""
    tensors: dict[str, TensorData] = {}
    kind, payload = leaf_into(tensors)(value, path)
    for name, data in tensors.items():
        return "inline", [kind, payload, name, data.dtype, list(data.shape), bytes(data.view())]
    return kind, payload


def build_inline(kind: str, payload: Any) -> Any:
    """Builds what `inline` left."""
    if kind != "inline":
        return build_from({})(kind, payload)
    kind, payload, name, dtype, shape, raw = payload
    tensor, view = memory.empty(len(raw))
    view[:] = raw
    return build_from({name: (tensor, dtype, tuple(shape))})(kind, payload)


def _available(device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    index = int(device.partition(":")[2] or 0)
    return torch.cuda.is_available() and index < torch.cuda.device_count()
