"""What every test gets: one torch thread, a Hypothesis profile and seed, and a check that it
leaves no process behind. The slow ones come first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch, and for every process that a test starts: beside a second
# worker, two threads are slower than one, and the number of threads decides the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# Else each worker and each process that a test starts compiles everything again: half of the time
# of collecting, and half a second of every process that imports a session.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Under nohup, or behind a shell's &, these are ignored, by every process that a test starts, too.
for _number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# --- Hypothesis: HYPOTHESIS_PROFILE picks how long it looks -------------------------------------

_PATIENT = {
    "deadline": None,
    "print_blob": True,
    "derandomize": False,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("dev", max_examples=50, stateful_step_count=30, **_PATIENT)
settings.register_profile("ci", max_examples=300, stateful_step_count=50, **_PATIENT)
settings.register_profile("soak", max_examples=20_000, stateful_step_count=100, **_PATIENT)
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"
settings.load_profile(_PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed here, so that it can be printed; xdist hands the option to its workers."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def _seed_line(config: pytest.Config) -> str:
    return f"HYPOTHESIS_PROFILE={_PROFILE} --hypothesis-seed={config.option.hypothesis_seed}"


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis: {_seed_line(config)}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(f"hypothesis, to see the same again: {_seed_line(config)}")


# Where `make coverage` looks, and where what draws no examples is the same in every profile.
_COVERED = tuple(Path(__file__).with_name(name) for name in ("unit", "contract"))


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "leave out what `make coverage` runs just the same: its tests that draw no examples"
    parser.addoption("--after-coverage", action="store_true", help=what)


def _is_covered(item: pytest.Item) -> bool:
    drawn = item.get_closest_marker("hypothesis") is not None
    return not drawn and any(folder in item.path.parents for folder in _COVERED)


@pytest.hookimpl(trylast=True)  # Hypothesis marks its tests here, too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slowest first: at the end, one of them would keep one worker while the others idle."""
    if config.getoption("after_coverage", False):
        again = [item for item in items if _is_covered(item)]
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if not _is_covered(item)]
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    """About, where it is known to take long."""
    slow = item.get_closest_marker("slow")
    return 0.0 if slow is None else float(next(iter(slow.args), 10.0))


# --- no process left behind ---------------------------------------------------------------------

# Inherited by whatever a test starts, so that an orphan is found after it lost its parent.
_MARK_NAME = "PYTEST_STARTED_BY"
_MARK_VALUE = uuid.uuid4().hex
os.environ[_MARK_NAME] = _MARK_VALUE
_MARK = f"{_MARK_NAME}={_MARK_VALUE}".encode()

# Helpers of the standard library and torch that live as long as the test process does.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch_shm_manager")
_GRACE_SECONDS = 3.0


# Processes without any such mark, by pid and by the inode, which differs once a pid is given out
# again: to read every process's environment twice a test took half a minute in all.
_strangers: set[tuple[int, int]] = set()


def _marked() -> set[int]:
    """Whatever carries the mark, whoever its parent is now."""
    global _strangers
    found, strangers = set(), set()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(ValueError, OSError):
            known = (int(entry.name), entry.inode())
            if known not in _strangers:
                with open(f"{entry.path}/environ", "rb") as file:
                    environ = file.read()
                if _MARK in environ:
                    found.add(known[0])
                if _may_become_ours(entry.path, environ):
                    continue
            strangers.add(known)
    _strangers = strangers
    return found


def _may_become_ours(process: str, environ: bytes) -> bool:
    """It is another worker's, or in the midst of exec; else it is a stranger."""
    if environ:
        return _MARK_NAME.encode() in environ
    with contextlib.suppress(OSError):  # the kernel's own, and zombies, have no program
        return bool(os.readlink(f"{process}/exe"))
    return False


def _below(pid: int) -> set[int]:
    """All descendants."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                found.update(map(int, children.split()))
    return found.union(*map(_below, found))


def _offspring() -> set[psutil.Process]:
    found = set()
    for pid in (_below(os.getpid()) | _marked()) - {os.getpid()}:
        with contextlib.suppress(psutil.Error):
            found.add(psutil.Process(pid))
    return found


def _counts(process: psutil.Process) -> bool:
    """Whether it still runs (a zombie has ended) and is nobody's long-lived helper."""
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return not any(helper in " ".join(process.cmdline()) for helper in _HELPERS)
    return False


def _left_since(before: set[psutil.Process]) -> list[psutil.Process]:
    multiprocessing.active_children()  # reaps those that have ended
    deadline = time.monotonic() + _GRACE_SECONDS
    while left := [process for process in _offspring() - before if _counts(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def _kill_and_describe(process: psutil.Process) -> str:
    try:
        text = f"{process.pid} {process.status()} {' '.join(process.cmdline())}"
        process.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(5)
    except psutil.Error:
        text = f"{process.pid} (ended meanwhile)"
    return text


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fails a test whose processes, at any depth or orphaned, outlive it; and ends them."""
    before = _offspring()
    yield
    left = _left_since(before)
    if left:
        pytest.fail("left behind:\n" + "\n".join(map(_kill_and_describe, left)), pytrace=False)
