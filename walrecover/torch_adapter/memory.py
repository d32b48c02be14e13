"""Tensors and arrays as bytes in memory, and back: the floor under `objects`.

Owns the way from a tensor to its address and from stored bytes to a tensor with identical bits.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

from walrecover.errors import Corrupt
from walrecover.plain import Unstorable
from walrecover.shards import TensorData


def tensor_data(tensor: torch.Tensor, path: str) -> TensorData:
    """The bytes of a tensor, contiguous in host memory. Copies only what is not so already.

    Raises Unstorable for tensors that have no plain storage (sparse, quantized, sharded, meta).
    """
    detached = tensor.detach()
    if type(detached) not in (torch.Tensor, torch.nn.Parameter):
        if hasattr(detached, "full_tensor"):
            raise Unstorable(
                f"{path} is a sharded {type(detached).__name__}: attach its local part"
            )
        raise Unstorable(f"{path} is a {type(detached).__name__}, whose bytes are not its own")
    if detached.layout is not torch.strided or detached.is_quantized or detached.is_nested:
        raise Unstorable(f"{path} is a {detached.layout} tensor: attach it as dense tensors")
    if detached.device.type == "meta":
        raise Unstorable(f"{path} is on the meta device and has no bytes")
    host = detached.resolve_conj().resolve_neg().cpu().contiguous()
    return TensorData(
        str(host.dtype).removeprefix("torch."),
        tuple(host.shape),
        host.data_ptr(),
        host.numel() * host.element_size(),
        (host, tensor),
    )


def array_data(array: Any, path: str) -> TensorData:
    """The bytes of a NumPy array. Raises Unstorable for objects and structured types."""
    import numpy as np

    if array.dtype.hasobject or array.dtype.names or array.dtype.subdtype:
        raise Unstorable(f"{path} is an array of {array.dtype}, which a snapshot cannot hold")
    host = np.ascontiguousarray(array).reshape(array.shape)
    return TensorData(host.dtype.str, tuple(host.shape), host.ctypes.data, host.nbytes, host)


def empty(nbytes: int) -> tuple[torch.Tensor, memoryview]:
    """Fresh host memory, as a byte tensor and as a buffer to fill."""
    memory = torch.empty(nbytes, dtype=torch.uint8)
    if not nbytes:
        return memory, memoryview(bytearray())
    raw = (ctypes.c_char * nbytes).from_address(memory.data_ptr())
    return memory, memoryview(raw).cast("B")


def as_tensor(memory: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Stored bytes as the tensor they were. Raises Corrupt for a type that torch does not have."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise Corrupt(f"no tensor type {dtype!r} in torch {torch.__version__}")
    if memory.numel() == 0:
        return torch.empty(shape, dtype=kind)
    return memory.view(kind).reshape(shape)


def as_array(memory: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> Any:
    """Stored bytes as the NumPy array they were."""
    import numpy as np

    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise Corrupt(f"no array type {dtype!r}") from None
    if kind.hasobject:
        raise Corrupt(f"an array of {dtype!r} cannot be stored")
    return np.frombuffer(bytes_of(memory), dtype=kind).reshape(shape).copy()


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous host tensor."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def numpy_or_none() -> Any:
    """NumPy if this process uses it: walrecover does not import it for anybody."""
    return sys.modules.get("numpy")
