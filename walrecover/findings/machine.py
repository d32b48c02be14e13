"""Judges the machine: limits, shared memory, clock, port, GPU and versions.

Owns their thresholds; must not look at anything but the facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from walrecover.findings.facts import Clock, Facts, Gpu, Interpreter, Limit, Port
from walrecover.findings.finding import Finding, size
from walrecover.findings.table import FAILURE, NOTE, OK, WARNING

DOCKER_SHM = 64 << 20
SMALL_SHM = 1 << 30
ARENA_SLOTS, ARENA_SPARE = 3, 256 << 20
"""What captures take at most, with `--memory-every`, by the size of the state
(specs/18-arena.md)."""

FEW_FILES = 4096
FEW_PROCESSES = 256
SMALL_LOCK = 64 << 20
SKEW_SECONDS = 5.0
EARLIEST = 1_735_689_600.0
"""2025-01-01: a clock before this release was never set."""

TORCH, LMDB = (2, 4), (3, 0)
PYTHONS = ((3, 11), (3, 14))


def judge(facts: Facts) -> Iterator[Finding]:
    if facts.command:
        yield Finding("command", FAILURE, facts.command)
    yield from _shm(facts.shm)
    yield from _memory(facts)
    yield from _clock(facts.clock)
    yield from _limits(facts)
    yield from _port(facts.port)
    yield from _gpu(facts.gpu, facts.interpreter)
    yield from _kernel(facts)
    yield from _versions(facts)


def _shm(bytes: int | None) -> Iterator[Finding]:
    if bytes is None:
        return
    text = f"/dev/shm has {size(bytes)}" if bytes else "/dev/shm is not there"
    level = WARNING if bytes <= DOCKER_SHM else NOTE if bytes < SMALL_SHM else OK
    yield Finding("shm", level, text)


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory is None or facts.snapshots is None:
        return
    needed = ARENA_SLOTS * facts.snapshots.bytes + ARENA_SPARE
    text = f"{size(facts.memory)} of memory are left; captures in memory take {size(needed)}"
    yield Finding("memory", OK if needed <= facts.memory else NOTE, text)


def _clock(clock: Clock | None) -> Iterator[Finding]:
    if clock is None:
        return
    problems = list(_clock_problems(clock))
    for text in problems:
        yield Finding("clock", WARNING, text)
    if not problems:
        yield Finding("clock", OK, "the clock is behind nothing that is known, and goes forward")


def _clock_problems(clock: Clock) -> Iterator[str]:
    if clock.now < EARLIEST:
        yield "the clock says a time before 2025"
    if clock.newest is not None and clock.newest > clock.now + SKEW_SECONDS:
        ahead = clock.newest - clock.now
        yield f"the clock is {ahead:.0f} s behind the run's newest decision"
    if clock.storage is not None and abs(clock.storage - clock.now) > SKEW_SECONDS:
        yield f"the storage's clock differs from this host's by {clock.storage - clock.now:+.0f} s"
    if clock.monotonic < 0:
        yield "the monotonic clock went backwards"


def _limits(facts: Facts) -> Iterator[Finding]:
    limits = facts.limits
    yield from _at_least("nofile", limits.get("nofile"), FEW_FILES, "open files", WARNING)
    yield from _at_least("memlock", limits.get("memlock"), SMALL_LOCK, "locked", NOTE)
    yield from _at_least(
        "nproc", limits.get("nproc"), facts.processes + FEW_PROCESSES, "processes", WARNING
    )
    yield from _fsize(limits.get("fsize"), facts)
    core = limits.get("core")
    if core is not None:
        text = "no core files are written" if core.soft == 0 else f"core files: {_amount(core)}"
        yield Finding("core", OK if core.soft == 0 else NOTE, text)


def _at_least(
    check: str, limit: Limit | None, least: int, what: str, bad: str
) -> Iterator[Finding]:
    if limit is None:
        return
    enough = limit.soft is None or limit.soft >= least
    shown = size(limit.soft) if check == "memlock" and limit.soft is not None else _amount(limit)
    text = f"the limit is {shown} {what}"
    if not enough and (limit.hard is None or limit.hard > (limit.soft or 0)):
        text += ", and this user may raise it"
    yield Finding(check, OK if enough else bad, text)


def _fsize(limit: Limit | None, facts: Facts) -> Iterator[Finding]:
    if limit is None:
        return
    needed = facts.snapshots.bytes if facts.snapshots else 0
    if limit.soft is None:
        yield Finding("fsize", OK, "files may have any size")
        return
    text = f"files may have {size(limit.soft)}"
    if needed:
        text += f"; a snapshot has {size(needed)}"
    yield Finding("fsize", FAILURE if needed > limit.soft else WARNING, text)


def _amount(limit: Limit) -> str:
    return "unlimited" if limit.soft is None else str(limit.soft)


def _port(port: Port | None) -> Iterator[Finding]:
    if port is None:
        return
    if not port.taken:
        yield Finding("port", OK, f"port {port.number} ({port.source}) is free")
        return
    by = f" by {port.holder}" if port.holder else ""
    text = f"port {port.number} ({port.source}) is taken{by}: {port.taken}"
    if port.surely:
        yield Finding("port", WARNING, text)
    else:
        yield Finding("port", NOTE, f"{text}; newer releases of torchrun take a free one instead")


def _gpu(gpu: Gpu | None, asked: Interpreter | None) -> Iterator[Finding]:
    if gpu is None:
        return
    wanted = _wanted(gpu.visible)
    seen = None if asked is None else asked.cuda
    if asked is not None and asked.cuda_error:
        yield Finding("gpu", WARNING, f"torch cannot say which GPUs it sees: {asked.cuda_error}")
    elif gpu.devices and wanted == 0:
        yield Finding("gpu", NOTE, f"{_gpus(gpu.devices)} here, hidden by CUDA_VISIBLE_DEVICES")
    elif wanted and wanted > gpu.devices:
        text = f"CUDA_VISIBLE_DEVICES is {gpu.visible!r}, and {_gpus(gpu.devices)} here"
        yield Finding("gpu", WARNING, text)
    elif gpu.devices and seen == 0:
        torch = asked.torch if asked else ""
        text = f"{_gpus(gpu.devices)} here, and torch {torch} sees none"
        yield Finding("gpu", WARNING, text)
    elif gpu.tool and not gpu.devices:
        yield Finding("gpu", WARNING, "nvidia-smi is here, and no device /dev/nvidiaN")
    elif not gpu.devices:
        yield Finding("gpu", OK, "no GPU here, and none is asked for")
    else:
        text = f"{_gpus(gpu.devices)} here"
        yield Finding("gpu", OK, text if seen is None else f"{text}, torch sees {seen}")


def _wanted(visible: str | None) -> int | None:
    """How many devices CUDA_VISIBLE_DEVICES names: CUDA stops at the first that it cannot read."""
    if visible is None:
        return None
    names = [name.strip() for name in visible.split(",")] if visible.strip() else []
    kept = 0
    for name in names:
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-\S+", name):
            break
        kept += 1
    return kept


def _gpus(count: int) -> str:
    return "1 GPU is" if count == 1 else f"{count or 'no'} GPUs are"


def _kernel(facts: Facts) -> Iterator[Finding]:
    """By trying: distributions bring new calls to old kernels, and containers forbid some."""
    if facts.pidfd:
        yield Finding("kernel", FAILURE, f"Linux {facts.kernel} gives no pidfd: {facts.pidfd}")
    elif facts.kernel:
        yield Finding("kernel", OK, f"Linux {facts.kernel} gives pidfds")


def _versions(facts: Facts) -> Iterator[Finding]:
    asked = facts.interpreter
    if asked is None:
        return
    if asked.error:
        yield Finding("python", WARNING, f"{asked.path} cannot be asked: {asked.error}")
        return
    fits = PYTHONS[0] <= version(asked.python) < PYTHONS[1]
    yield Finding("python", OK if fits else FAILURE, f"Python {asked.python} ({asked.path})")
    yield _package("torch", asked.torch, TORCH, asked.path)
    yield _package("lmdb", asked.lmdb, LMDB, asked.path)
    if asked.walrecover == facts.walrecover:
        yield Finding("walrecover", OK, f"walrecover {asked.walrecover}")
    elif asked.walrecover:
        text = f"walrecover {asked.walrecover} for {asked.path}, and this is {facts.walrecover}"
        yield Finding("walrecover", WARNING, text)
    else:
        yield Finding("walrecover", WARNING, f"walrecover is not installed for {asked.path}")


def _package(name: str, found: str, least: tuple[int, ...], path: str) -> Finding:
    if not found:
        return Finding(name, WARNING, f"{name} is not installed for {path}")
    return Finding(name, OK if version(found) >= least else FAILURE, f"{name} {found}")


def version(text: str) -> tuple[int, ...]:
    """The leading numbers: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
