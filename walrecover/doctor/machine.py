"""What the machine has: limits, shared memory, clocks, GPUs, pidfds.

Owns asking the kernel; must not judge what it says.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Mapping, Sequence

from walrecover.findings.facts import Clock, Gpu, Limit

LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "fsize": resource.RLIMIT_FSIZE,
    "nproc": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
}


def limits(names: Sequence[str] = tuple(LIMITS)) -> dict[str, Limit]:
    """Root is not held to the number of its processes."""
    found = {}
    for name in names:
        if name == "nproc" and os.getuid() == 0:
            continue
        values = resource.getrlimit(LIMITS[name])
        soft, hard = (None if v == resource.RLIM_INFINITY else v for v in values)
        found[name] = Limit(soft, hard)
    return found


def processes() -> int:
    """What counts against this user's limit: processes and their threads."""
    import psutil

    uid, count = os.getuid(), 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == uid:
                count += process.num_threads()
    return count


def shm() -> int:
    """Bytes of /dev/shm, 0 where there is none."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize


def clock(newest: float | None, storage: float | None) -> Clock:
    """`storage`: the time of a file that was written a moment ago."""
    first = time.monotonic()
    now = time.time()
    return Clock(now, newest, storage, time.monotonic() - first)


def pidfd() -> str:
    """Why the kernel gives no pidfd, or ""."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def gpu(environ: Mapping[str, str]) -> Gpu:
    import shutil

    names = os.listdir("/dev") if os.path.isdir("/dev") else []
    devices = sum(bool(re.fullmatch(r"nvidia[0-9]+", name)) for name in names)
    tool = shutil.which("nvidia-smi", path=environ.get("PATH")) is not None
    return Gpu(devices, environ.get("CUDA_VISIBLE_DEVICES"), tool)


def expects_gpu(gpu: Gpu) -> bool:
    return gpu.devices > 0 or gpu.tool or gpu.visible not in (None, "", "-1")
