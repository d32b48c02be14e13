"""Stored bytes into living tensors.

Owns which copies are plain bytes, and the memory of tensors that are new: in large pages, since
giving memory out page by page costs several times what filling it does. Copies by torch's own
threads wait for each other at every tensor, for seconds where others use the processors, too.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from walrecover import parallel

ALIGNMENT = 64
"""As torch's own memory: other kernels, and other bits, could follow from another one."""


def is_plain(tensor: Any) -> bool:
    """Whether its bytes lie in this process's memory in the order of its elements."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def fits(target: Any, source: Any) -> bool:
    """Whether one is filled by copying the other's bytes."""
    return (
        is_plain(target)
        and is_plain(source)
        and target.dtype == source.dtype
        and target.shape == source.shape
    )


def filled_plainly(value: torch.nn.Module) -> set[str]:
    """The names of parameters and buffers that `load_state_dict` would fill by a copy and nothing
    else: not where code of other authors may look at the state, or keep it."""
    names: set[str] = set()
    if type(value).load_state_dict is not torch.nn.Module.load_state_dict:
        return names
    for prefix, module in value.named_modules(remove_duplicate=False):
        if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
            return set()
        if type(module)._load_from_state_dict is not torch.nn.Module._load_from_state_dict:
            if not type(module).__module__.startswith("torch.nn."):
                return set()
            continue
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        names.update(f"{prefix}.{name}" if prefix else name for name, _ in held)
    return names


def fill(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy each second tensor's bytes into the first, which `fits`. Of those that are the same
    memory the last counts."""
    by_place = {target.data_ptr(): (target, source) for target, source in pairs if target.nbytes}
    parallel.copy(
        (to, source.data_ptr(), target.nbytes) for to, (target, source) in by_place.items()
    )


def fill_living(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """As `fill`, and autograd hears of it: nothing is differentiated through what was there."""
    found = list(pairs)
    fill(found)
    with torch.no_grad():
        for target, _ in found:
            target.detach().view(-1)[:0].zero_()


def fresh(sizes: Sequence[int]) -> list[torch.Tensor]:
    """Byte tensors of so many bytes, filled with nothing, that live and go together."""
    places, end = [], 0
    for size in sizes:
        places.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    if not end:
        return [torch.empty(0, dtype=torch.uint8) for _ in sizes]
    memory = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return [part_of(memory, place, size) for place, size in zip(places, sizes, strict=True)]


def part_of(held: Any, offset: int, nbytes: int) -> torch.Tensor:
    """Some bytes of a buffer, as a byte tensor that keeps all of it; not a copy."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(held, dtype=torch.uint8, count=nbytes, offset=offset)


def own(stored: Sequence[torch.Tensor], mine: Sequence[Any]) -> list[torch.Tensor]:
    """Tensors with these bytes that belong to nobody else: those of `mine`, filled, where they
    fit, else new ones."""
    used: set[int] = set()
    targets: dict[int, torch.Tensor] = {}
    for number, (source, target) in enumerate(zip(stored, mine, strict=True)):
        if fits(target, source) and target.data_ptr() not in used:
            used.add(target.data_ptr())
            targets[number] = target
    new = [n for n in range(len(stored)) if n not in targets and is_plain(stored[n])]
    for n, memory in zip(new, fresh([stored[n].nbytes for n in new]), strict=True):
        if stored[n].nbytes:
            targets[n] = memory.view(stored[n].dtype).reshape(stored[n].shape)
    fill((target, stored[n]) for n, target in targets.items())
    return [targets[n] if n in targets else stored[n].clone() for n in range(len(stored))]
