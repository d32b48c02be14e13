"""What a saver takes for the bytes that were captured, whatever becomes of the process behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from blake3 import blake3

from tests.support.slots import fill
from walrecover.arena.layout import PAGE, Header
from walrecover.arena.memory import Arena
from walrecover.arena.slots import Slot
from walrecover.saver.digesting import SCRIBBLED, Digesting, Lost
from walrecover.saver.trainer import Trainer
from walrecover.shards import TensorData

Dying = Callable[[signal.Signals], Callable[[], None]]
DATA = {"weight": b"as it was captured", "bias": b"and this"}


@pytest.fixture
def slot() -> Iterator[Slot]:
    arena = Arena.create(1, 16 * PAGE)
    yield arena.slots[0]
    arena.close()


@pytest.fixture
def header(slot: Slot) -> Header:
    return fill(slot, 1, DATA)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Stands where the training does; nothing else of it is looked at."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


@pytest.fixture
def trainer(process: subprocess.Popen[bytes]) -> Iterator[Trainer]:
    pidfd = os.pidfd_open(process.pid)
    yield Trainer(pidfd)
    os.close(pidfd)


def die(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """It has ended, and nobody has waited for it yet."""
    process.send_signal(number)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def scribble(slot: Slot, header: Header) -> None:
    ctypes.memmove(slot.data_address(header), b"x", 1)


def take(
    slot: Slot, header: Header, trainer: Trainer, meanwhile: Callable[[], object] = lambda: None
) -> Callable[[], None]:
    """Digest all, as the write of a shard does. `meanwhile`: while the first tensor is. Returns
    what is to be called before the vote."""
    rows = slot.job(header)[1]
    left = [meanwhile]
    digesting = Digesting(
        slot, header, rows, trainer, lambda nbytes: left.pop()() if left else None
    )
    base = slot.data_address(header)
    digesting.named(
        {
            row.name: TensorData(row.dtype, row.shape, base + row.offset, row.nbytes, None)
            for row in rows
        }
    )
    return digesting.settle


def test_what_a_process_captured_is_known_once_all_is_digested(
    slot: Slot, header: Header, trainer: Trainer, process: subprocess.Popen[bytes]
) -> None:
    settle = take(slot, header, trainer)
    assert slot.digests(header) is not None
    settle()
    die(process, signal.SIGSEGV)
    settle()
    take(slot, header, trainer)()


@pytest.fixture
def take_while_it_dies(
    slot: Slot, header: Header, trainer: Trainer, process: subprocess.Popen[bytes]
) -> Dying:
    return lambda number: take(slot, header, trainer, lambda: die(process, number))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_others_ended_while_it_was_digested_did_not_scribble(
    slot: Slot, header: Header, take_while_it_dies: Dying, number: signal.Signals
) -> None:
    settle = take_while_it_dies(number)
    assert slot.digests(header) == [blake3(data).digest() for data in DATA.values()]
    settle()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_process_that_crashed_while_it_was_digested_may_have_scribbled_before(
    slot: Slot, header: Header, trainer: Trainer, take_while_it_dies: Dying, number: signal.Signals
) -> None:
    settle = take_while_it_dies(number)
    with pytest.raises(Lost, match=f"was ended by {number.name} meanwhile"):
        settle()
    assert slot.digests(header) is None
    with pytest.raises(Lost, match="not to be trusted"):
        take(slot, header, trainer)


def test_what_lies_there_when_the_next_saver_comes_must_be_what_was_digested(
    slot: Slot, header: Header, trainer: Trainer
) -> None:
    take(slot, header, trainer)()
    scribble(slot, header)
    settle = take(slot, header, trainer)
    with pytest.raises(Lost, match=SCRIBBLED):
        settle()


def test_a_process_that_crashed_may_have_scribbled_behind_the_digests(
    slot: Slot, header: Header, trainer: Trainer, process: subprocess.Popen[bytes]
) -> None:
    settle = take(slot, header, trainer)
    scribble(slot, header)
    die(process, signal.SIGSEGV)
    with pytest.raises(Lost, match=SCRIBBLED):
        settle()


def test_a_slot_that_is_filled_again_meanwhile_is_neither_known_nor_voted_for(
    slot: Slot, header: Header, trainer: Trainer
) -> None:
    """Rule 8."""
    settle = take(slot, header, trainer, lambda: fill(slot, 2, DATA))
    assert slot.digests(header) is None
    with pytest.raises(Lost, match="filled again"):
        settle()


def test_a_slot_that_is_filled_again_behind_its_digests_is_not_voted_for(
    slot: Slot, header: Header, trainer: Trainer
) -> None:
    settle = take(slot, header, trainer)
    fill(slot, 2, DATA)
    with pytest.raises(Lost, match="filled again"):
        settle()
