"""The arena of the attempt before, as a source of the bytes that a plan's base names.

Owns finding what a saver offers, every check that makes it safe to use (specs/18-arena.md), and the
saver's end. What is not there, or not to be trusted, is read from disk: nothing here raises.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from walrecover.arena.layout import State
from walrecover.arena.memory import Sealed
from walrecover.entries import SnapshotRef
from walrecover.errors import Corrupt, WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.processes import is_alive
from walrecover.rundir import RunDir
from walrecover.saver import offers, roll
from walrecover.saver.offers import Offer

READY_SECONDS = 10.0
"""For a saver to digest what it is about to offer. Reading it from disk takes longer."""

LOOK_SECONDS = 0.002


class Place(NamedTuple):
    """Where in the memory."""

    offset: int
    nbytes: int


class Source(NamedTuple):
    """`places`: by digest, as manifests have it. `refused`: why what was offered is not used, ""
    also where nothing was."""

    memory: ctypes.Array[ctypes.c_char] | None = None
    places: Mapping[str, Place] = {}
    refused: str = ""


NOTHING = Source()


class Refused(Exception):
    """Its message says why."""


def take(run: RunDir, base: SnapshotRef, rank: int, world: int) -> Source:
    """What the saver of the attempt that made this snapshot offers to this rank. It ends then."""
    offer = offers.read(run.meeting(base.attempt, base.nonce), rank)
    if offer is None:
        return NOTHING
    try:
        with _saver(run, base, rank, offer) as pidfd:
            ready = _ready(run, base, rank, offer, pidfd)
            source = _open(run, base, rank, world, ready, pidfd)
            failpoint("saver.taken")
            return source
    except ProcessLookupError:
        return Source(refused=offer.refused)
    except (Refused, WalrecoverError, OSError) as error:
        return Source(refused=str(error))


def leave(run: RunDir, base: SnapshotRef, ranks: Iterable[int]) -> None:
    """These ranks' savers need not wait: another number of ranks reads from disk."""
    for rank in ranks:
        offer = offers.read(run.meeting(base.attempt, base.nonce), rank)
        if offer is not None:
            with contextlib.suppress(Refused, OSError), _saver(run, base, rank, offer):
                pass


@contextlib.contextmanager
def _saver(run: RunDir, base: SnapshotRef, rank: int, offer: Offer) -> Iterator[int]:
    """A pidfd of the process that offers, once it is known to be this rank's saver. It is ended
    behind that: it has nothing to save any more, and what it had is taken or not wanted. Raises
    ProcessLookupError, Refused."""
    pid = offer.holder.pid
    pidfd = os.pidfd_open(pid)
    try:
        if not is_alive(offer.holder):
            raise ProcessLookupError(pid)
        given = roll.assignment(run, pid)
        if _has_ended(pidfd):
            raise ProcessLookupError(pid)
        if given is None:
            raise Refused(f"process {pid}, which offers it, is no saver of this run")
        if (given.attempt, given.nonce, given.rank) != (base.attempt, base.nonce, rank):
            raise Refused(f"process {pid}, which offers it, is the saver of another rank")
        try:
            yield pidfd
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _ready(run: RunDir, base: SnapshotRef, rank: int, offer: Offer, pidfd: int) -> Offer:
    """The offer, once its memory is digested. Raises Refused."""
    deadline = time.monotonic() + READY_SECONDS
    while offer.fd < 0:
        ended = _has_ended(pidfd)  # asked first: then what it said last is all there will be
        offer = offers.read(run.meeting(base.attempt, base.nonce), rank) or offer
        if offer.refused:
            raise Refused(offer.refused)
        if ended:
            raise Refused("its saver ended before it was digested")
        if time.monotonic() > deadline:
            raise Refused(f"it was not digested within {READY_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)
    return offer


def _open(
    run: RunDir, base: SnapshotRef, rank: int, world: int, offer: Offer, pidfd: int
) -> Source:
    """Its memory, checked. Raises Refused, Corrupt, OSError."""
    fd = os.open(f"/proc/{offer.holder.pid}/fd/{offer.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _has_ended(pidfd):
            raise Refused("its saver has ended")
        sealed = Sealed(fd, offer.slot)
    finally:
        os.close(fd)
    judged = sealed.slot.judge(lives=False)
    if judged.state is not State.COMPLETE or judged.header is None:
        raise Corrupt(f"its slot is {judged.state.value}")
    header = judged.header
    job, rows = sealed.slot.job(header)
    if (job.run, job.attempt, job.nonce) != (run.name, base.attempt, base.nonce):
        raise Refused(f"it is a capture of run {job.run}, attempt {job.attempt}")
    if (job.rank, job.world) != (rank, world):
        raise Refused(f"it is a capture of rank {job.rank} of {job.world}")
    digests = sealed.slot.digests(header)
    if digests is None:
        raise Corrupt("its slot has no digests")
    data = header.regions.data
    places = {
        "blake3:" + digest.hex(): Place(data + row.offset, row.nbytes)
        for row, digest in zip(rows, digests, strict=True)
    }
    return Source(sealed.memory, places)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
