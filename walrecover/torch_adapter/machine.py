"""What torch computes with here: a changed number of threads or CPU changes the last bits."""

from __future__ import annotations

import platform

import torch


def threads() -> int:
    return torch.get_num_threads()


def cpu() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
