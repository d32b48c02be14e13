"""What memory this process may take: the machine's, and its control group's.

Owns finding the group (either version of the kernel's interface) and reading its limit. Judges
nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def memory_cgroup(pid: int | str = "self") -> Path | None:
    """The folder of a process's cgroup that counts memory, of either version."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if "memory" in controllers.split(","):
            # In a container the path is the host's, and its own cgroup is the root of the mount.
            found = [ROOT / "memory" / inside, ROOT / "memory"]
        elif not controllers:
            found = [ROOT / inside, ROOT / "unified" / inside, ROOT]
        else:
            continue
        for folder in found:
            if (folder / "memory.oom_control").exists() or (folder / "memory.events").exists():
                return folder
    return None


def is_root(cgroup: Path) -> bool:
    """Whether it is the root of what is mounted here. A process that exits is shown there, from
    before its memory is freed until it is reaped, wherever it was."""
    return cgroup in (ROOT, ROOT / "memory", ROOT / "unified")


def limit(cgroup: Path | None) -> int | None:
    """Bytes that the group may hold; None where there is no limit."""
    found = _first(cgroup, "memory.max", "memory.limit_in_bytes")
    return found if found is not None and found < 1 << 62 else None


def available(cgroup: Path | None, meminfo: Path = MEMINFO) -> int | None:
    """Bytes that can still be taken without anybody being killed for it: of the machine, and of
    the group, whose file cache counts as free. None where nothing tells."""
    found = [number for number in (_machine(meminfo), _group(cgroup)) if number is not None]
    return min(found) if found else None


def _machine(meminfo: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _group(cgroup: Path | None) -> int | None:
    most = limit(cgroup)
    used = _first(cgroup, "memory.current", "memory.usage_in_bytes")
    if cgroup is None or most is None or used is None:
        return None
    cache = 0
    with contextlib.suppress(OSError, ValueError):
        for line in (cgroup / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                cache = max(cache, int(value))
    return max(0, most - used + cache)


def _first(cgroup: Path | None, *names: str) -> int | None:
    if cgroup is not None:
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                return int((cgroup / name).read_text())
    return None
