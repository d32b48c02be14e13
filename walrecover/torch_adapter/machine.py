"""What torch computes with here: a changed number of threads or CPU changes the last bits."""

from __future__ import annotations

import platform

import torch


def threads() -> int:
    return torch.get_num_threads()


def inexact(world: int, regroups: bool) -> tuple[str, ...]:
    """What need not give the same bits twice, as far as it is known before the first step.

    Where a gradient lies in a bucket decides in which order an all-reduce adds up the ranks' parts.
    DDP fills its buckets anew after its first step, by the order in which gradients came
    (`Reducer::rebuild_buckets`), and a resume makes a first step where there was none before. Of
    two numbers the order does not matter.
    """
    found = []
    if regroups and world > 2:
        found.append(
            f"DDP adds up the gradients of {world} ranks in another order in its first step (not "
            f"with find_unused_parameters)"
        )
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        if not torch.are_deterministic_algorithms_enabled():
            found.append("CUDA kernels may differ (torch.use_deterministic_algorithms is off)")
        if torch.backends.cudnn.benchmark:
            found.append("cudnn.benchmark chooses kernels by their speed")
    return tuple(found)


def cpu() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
