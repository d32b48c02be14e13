"""Which process is whose, and the death of that very one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from walrecover.journal import inspector
from walrecover.processes import Seen, descendants, started_at
from walrecover.rehearse import tree

# Starts a child that does nothing, says both pids, and waits.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "--lazy"])
print(os.getpid(), child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A child of ours, and the pid of its own child."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline().split()[1])
    yield parent, child
    parent.communicate("")


def seen(pid: int) -> Seen:
    started = started_at(pid)
    assert started is not None
    return Seen(pid, started)


def test_a_process_is_found_below_its_ancestors(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, child = family
    assert tree.below(child, parent.pid) == seen(child)
    assert tree.below(child, os.getpid()) == seen(child)
    assert tree.below(parent.pid, child) is None
    assert tree.below(os.getpid(), child) is None
    assert tree.below(1 << 22, os.getpid()) is None


def test_the_others_are_those_that_are_no_ranks(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, child = family
    found = tree.others(os.getpid(), {child})
    assert seen(parent.pid) in [victim.process for victim in found]
    assert child not in [victim.process.pid for victim in found]
    assert all(victim.rank is None for victim in found)


def test_what_is_kept_for_a_restart_is_not_among_the_others() -> None:
    inspector.prepare()
    try:
        pids = [victim.process.pid for victim in tree.others(os.getpid(), ())]
        assert inspector.prepared() in [process.pid for process in descendants(os.getpid())]
        assert inspector.prepared() not in pids
    finally:
        inspector.dismiss()


def test_that_very_process_dies_of_it(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, _ = family
    assert tree.kill(seen(parent.pid))
    assert parent.wait() == -signal.SIGKILL


def test_a_pid_that_was_given_out_again_is_left_alone(
    family: tuple[subprocess.Popen[str], int],
) -> None:
    parent, _ = family
    assert not tree.kill(Seen(parent.pid, started=0.0))
    assert parent.poll() is None


def test_a_process_that_has_ended_does_not_die_again(
    family: tuple[subprocess.Popen[str], int],
) -> None:
    parent, _ = family
    process = seen(parent.pid)
    parent.communicate("")
    assert not tree.kill(process)
