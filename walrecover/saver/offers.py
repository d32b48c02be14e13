"""What a saver offers to the next attempt, told by a file beside its attempt's other files.

Owns the file, and who stands behind it; the memory itself is `arena.memory`'s. The file tells, it
is never state: where it is lost, the next attempt reads from disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from walrecover.entries import Holder
from walrecover.files import make_directory, replace_file
from walrecover.processes import is_alive
from walrecover.rundir import RunDir
from walrecover.saver import roll


class Offer(msgspec.Struct, frozen=True):
    """By the process `holder`, which has saved all that there was. `fd`: its descriptor of sealed
    memory, -1 as long as that is not digested; `slot`: which one holds the capture. `refused`: why
    there will be none."""

    holder: Holder
    fd: int = -1
    slot: int = 0
    refused: str = ""


def say(meeting: Path, rank: int, offer: Offer) -> None:
    """Where that cannot be written there is no offer."""
    with contextlib.suppress(OSError):
        make_directory(meeting)
        replace_file(_path(meeting, rank), msgspec.json.encode(offer))


def read(meeting: Path, rank: int) -> Offer | None:
    try:
        return msgspec.json.decode(_path(meeting, rank).read_bytes(), type=Offer)
    except (OSError, msgspec.DecodeError):
        return None


def settled(run: RunDir, pids: Iterable[int]) -> set[int]:
    """Those of these savers of the run that have nothing left to save."""
    found: set[int] = set()
    for pid in pids:
        given = roll.assignment(run, pid)
        if given is None:
            continue
        offer = read(run.meeting(given.attempt, given.nonce), given.rank)
        if offer is not None and offer.holder.pid == pid and is_alive(offer.holder):
            found.add(pid)
    return found


def _path(meeting: Path, rank: int) -> Path:
    return meeting / f"rank-{rank:05d}.offer"
