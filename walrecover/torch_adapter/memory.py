"""Tensors and arrays as bytes in memory, and back: the floor under `objects`.

Owns the way from a tensor to its address and from stored bytes to a tensor with identical bits.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from walrecover.errors import Corrupt
from walrecover.plain import Unstorable
from walrecover.shards import TensorData


class Far(NamedTuple):
    """What owns bytes that lie on a device, at an address of its own.

    `source` is contiguous, `tensor` what it was made of. `steady`: only an optimizer's step changes
    it.
    """

    source: torch.Tensor
    tensor: torch.Tensor
    steady: bool = False


def is_far(tensor: torch.Tensor) -> bool:
    """Whether its bytes lie on a device that copies them by itself."""
    return tensor.is_cuda


def near(data: TensorData) -> TensorData:
    """The same bytes in host memory; waits for the device."""
    if not isinstance(data.owner, Far):
        return data
    host = data.owner.source.cpu()
    return data._replace(address=host.data_ptr(), owner=(host, data.owner.tensor))


def tensor_data(tensor: torch.Tensor, path: str, *, far: bool = False) -> TensorData:
    """The bytes of a tensor, contiguous in host memory; where `far` may be, on their device. Copies
    only what is not so already.

    Raises Unstorable for tensors that have no plain storage (sparse, quantized, sharded, meta, or
    of a lazy module that has not seen a batch).
    """
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise Unstorable(f"{path} has no shape yet: let the model see a batch before attach()")
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
    plain = detached.resolve_conj().resolve_neg()
    stays = far and is_far(plain)
    source = (plain if stays else plain.cpu()).contiguous()
    return TensorData(
        str(source.dtype).removeprefix("torch."),
        tuple(source.shape),
        source.data_ptr(),
        source.numel() * source.element_size(),
        Far(source, tensor) if stays else (source, tensor),
    )


def array_data(array: Any, path: str) -> TensorData:
    """The bytes of a NumPy array. Raises Unstorable for objects and structured types."""
    import numpy as np

    if array.dtype.hasobject or array.dtype.names or array.dtype.subdtype:
        raise Unstorable(f"{path} is an array of {array.dtype}, which a snapshot cannot hold")
    if isinstance(array, np.ma.MaskedArray):
        raise Unstorable(f"{path} is a masked array: attach its data and its mask")
    host = np.ascontiguousarray(array).reshape(array.shape)
    return TensorData(host.dtype.str, tuple(host.shape), host.ctypes.data, host.nbytes, host)


def empty(nbytes: int) -> tuple[torch.Tensor, memoryview]:
    """Fresh host memory, as a byte tensor and as a buffer to fill."""
    memory = torch.empty(nbytes, dtype=torch.uint8)
    return memory, view_of(memory)


def view_of(memory: torch.Tensor) -> memoryview:
    """A byte tensor of the host as a buffer to fill, which does not keep it."""
    if not memory.nbytes:
        return memoryview(bytearray())
    raw = (ctypes.c_char * memory.nbytes).from_address(memory.data_ptr())
    return memoryview(raw).cast("B")


def dtype_of(name: Any) -> torch.dtype:
    """Raises Corrupt for a type that torch does not have."""
    kind = getattr(torch, str(name), None)
    if not isinstance(kind, torch.dtype):
        raise Corrupt(f"no tensor type {name!r} in torch {torch.__version__}")
    return kind


def as_tensor(memory: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Stored bytes as the tensor they were. Raises Corrupt for a type that torch does not have."""
    kind = dtype_of(dtype)
    if memory.numel() == 0:
        return torch.empty(shape, dtype=kind)
    return memory.view(kind).reshape(shape)


def as_array(memory: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> Any:
    """Stored bytes as the NumPy array they were."""
    import numpy as np

    array = np.empty(shape, _array_type(dtype))
    if array.nbytes != memory.numel():
        raise Corrupt(f"{memory.numel()} bytes for an array of {array.nbytes}")
    ctypes.memmove(array.ctypes.data, memory.data_ptr(), array.nbytes)
    return array


def as_scalar(dtype: str, data: bytes) -> Any:
    """Stored bytes as the NumPy scalar they were."""
    import numpy as np

    return np.ndarray((), _array_type(dtype), data or b"\0")[()]


def _array_type(name: str) -> Any:
    import numpy as np

    kind = np.dtype(name)
    if kind.hasobject:
        raise Corrupt(f"an array of {name!r} cannot be stored")
    return kind


def strides_of(tensor: torch.Tensor) -> list[int] | None:
    """The strides that a copy must have for the same kernels, and so the same bits, to run on it;
    None for a contiguous tensor. (channels_last, or a transposed parameter's state)"""
    if tensor.is_contiguous():
        return None
    like = torch.empty_like(tensor, device="meta")
    return None if like.is_contiguous() else list(like.stride())


def with_strides(
    tensor: torch.Tensor, strides: list[int] | None, *, borrowed: bool = False
) -> torch.Tensor:
    """A copy of its own; the tensor itself where that may be `borrowed`, and need not change."""
    if strides is None:
        return tensor if borrowed else tensor.clone()
    if len(strides) != tensor.dim() or min(strides, default=0) < 0:
        raise Corrupt(f"strides {strides} for a tensor of {tensor.dim()} dimensions")
    laid_out = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype)
    if laid_out.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        raise Corrupt(f"strides {strides} do not fit the shape {tuple(tensor.shape)}")
    return laid_out.copy_(tensor)


def owns_its_memory(value: Any) -> bool:
    """Whether a tensor or array covers all of the memory that it lies in, and may write there. A
    slice of a dataset does not: filling it in place would overwrite the dataset."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.layout is not torch.strided:
            return False
        return value.untyped_storage().nbytes() == value.numel() * value.element_size()
    base = value if value.base is None else value.base
    return bool(value.flags.writeable and getattr(base, "nbytes", -1) == value.nbytes)


def is_array_or_tensor(value: Any) -> bool:
    numpy = numpy_or_none()
    return isinstance(value, torch.Tensor) or (
        numpy is not None and isinstance(value, numpy.ndarray)
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous host tensor. (`ctypes.string_at` takes twice as long.)"""
    return bytes(_array_of(tensor.nbytes).from_address(tensor.data_ptr()).raw)


@cache
def _array_of(nbytes: int) -> Any:
    return ctypes.c_char * nbytes


def numpy_or_none() -> Any:
    """NumPy if this process uses it: walrecover does not import it for anybody."""
    return sys.modules.get("numpy")
