"""What torch computes with here: a changed number of threads or CPU changes the last bits."""

from __future__ import annotations

import platform

import torch


def threads() -> int:
    return torch.get_num_threads()


def inexact() -> tuple[str, ...]:
    """What need not give the same bits twice, as far as it is known before the first step."""
    found = []
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        if not torch.are_deterministic_algorithms_enabled():
            found.append("CUDA kernels may differ (torch.use_deterministic_algorithms is off)")
        if torch.backends.cudnn.benchmark:
            found.append("cudnn.benchmark chooses kernels by their speed")
    return tuple(found)


def cpu() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
