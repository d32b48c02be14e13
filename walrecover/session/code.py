"""What runs: code and configuration version, recorded at every attempt and compared on resume.

Owns what is recorded and how a difference is said. Secrets stay out: values of options and
variables that look like one are redacted, and of the environment only an allow-list is kept.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata

from blake3 import blake3

from walrecover.events import Code
from walrecover.tiers import OWN_WORKERS
from walrecover.torch_adapter import machine

LIBRARIES = ("walrecover", "torch", "numpy", "lmdb", "safetensors", "msgspec")
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED",
    "WALRECOVER_WORKER_SEEDS",
)
_SECRET = re.compile(r"(?i)(token|secret|passw|api.?key|credential|auth)")


_ahead: list[tuple[tuple[str, str], dict[str, str]]] = []


def look_ahead() -> None:
    """Find out now what takes long: of a parked standby's code, which has been loaded already."""
    _ahead.append((_git(), _libraries()))


def current(world: int, regroups: bool) -> Code:
    """The version of what runs in this process. `regroups`: as of `Attached`."""
    (commit, dirty), libraries = _ahead.pop() if _ahead else (_git(), _libraries())
    return Code(
        argv=redacted(sys.argv),
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        libraries=libraries,
        threads=machine.threads(),
        cpu=machine.cpu(),
        world=world,
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        inexact=(*machine.inexact(world, regroups), *_own_seeds()),
    )


def _own_seeds() -> tuple[str, ...]:
    return (OWN_WORKERS,) if os.environ.get("WALRECOVER_WORKER_SEEDS") == "own" else ()


def redacted(argv: list[str]) -> tuple[str, ...]:
    """The arguments, with values of options that look like secrets left out."""
    found = []
    hide = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if hide and not argument.startswith("-"):
            found.append("<redacted>")
            hide = False
            continue
        hide = False
        if _SECRET.search(name):
            if equals:
                argument = f"{name}=<redacted>"
            else:
                hide = argument.startswith("-")
        found.append(argument)
    return tuple(found)


def differences(before: Code, now: Code) -> tuple[str, ...]:
    """What changed since, one sentence each."""
    found = []
    for field in ("argv", "commit", "dirty", "python", "threads", "cpu", "world"):
        old, new = getattr(before, field), getattr(now, field)
        if old != new:
            if field == "argv":
                old, new = " ".join(old), " ".join(new)
            if field == "dirty":
                found.append("uncommitted changes differ")
            else:
                found.append(f"{field} was {old or 'unknown'}, is {new or 'unknown'}")
    for field in ("libraries", "environment"):
        old, new = getattr(before, field), getattr(now, field)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(
                    f"{name} was {old.get(name, 'not set')}, is {new.get(name, 'not set')}"
                )
    return tuple(found)


def _libraries() -> dict[str, str]:
    return {name: version for name in LIBRARIES if (version := _version(name))}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git() -> tuple[str, str]:
    """The commit that is checked out, and a digest of what differs from it; "" outside git."""
    folder = os.path.dirname(os.path.abspath(sys.argv[0] or "."))
    try:
        commit = _run_git(folder, "rev-parse", "HEAD").decode().strip()
        diff = _run_git(folder, "diff", "HEAD", "--no-ext-diff", "--binary")
    except (OSError, subprocess.SubprocessError):
        return "", ""
    return commit, blake3(diff).hexdigest()[:16] if diff else ""


def _run_git(folder: str, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", folder, *arguments],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=10,
    ).stdout
