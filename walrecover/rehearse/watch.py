"""Watching a run that trains: which attempt is the newest, its ranks, their processes and beats.

Owns finding and following these from outside, cheaply enough to do it thousands of times a
second; changes nothing.
"""

from __future__ import annotations

import os
import re
import select
from typing import NamedTuple

from walrecover.beats import Page, Reading, find_beats
from walrecover.errors import WalrecoverError
from walrecover.events import AttemptBegun
from walrecover.journal import Reader
from walrecover.processes import Seen
from walrecover.rehearse import tree
from walrecover.rundir import RunDir

_LABEL = re.compile(r"a(\d+)-([0-9a-f]+)")


class Rank(NamedTuple):
    """A living rank: its process, a descriptor that becomes readable when it ends, its beat."""

    process: Seen
    fd: int
    page: Page


class Attempt:
    """An attempt whose every rank has been found."""

    def __init__(self, number: int, nonce: str, ranks: list[Rank]) -> None:
        self.number, self.nonce, self.ranks = number, nonce, ranks
        self._poll = select.poll()
        for rank in ranks:
            self._poll.register(rank.fd, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether every rank lives: where one has died, the others soon will."""
        return not self._poll.poll(0)

    def read(self, rank: int) -> Reading:
        return self.ranks[rank].page.read()

    def close(self) -> None:
        for rank in self.ranks:
            rank.page.close()
            os.close(rank.fd)


class Watch:
    """The newest attempt of a run, as far as it can be seen now."""

    def __init__(self, run: RunDir, supervisor: int) -> None:
        self.run = run
        self._supervisor = supervisor
        self._attempt: Attempt | None = None

    def attempt(self) -> Attempt | None:
        """The newest attempt, if all of its ranks live."""
        if self._attempt is not None:
            if self._attempt.alive:
                return self._attempt
            self.close()
        newest = self._newest()
        self._attempt = self._open(*newest) if newest else None
        return self._attempt

    def close(self) -> None:
        if self._attempt is not None:
            self._attempt.close()
            self._attempt = None

    def _newest(self) -> tuple[int, str] | None:
        try:
            names = os.listdir(self.run.attempts)
        except FileNotFoundError:
            return None
        found = [(int(m[1]), m[2]) for m in map(_LABEL.fullmatch, names) if m]
        return max(found, default=None)

    def _open(self, number: int, nonce: str) -> Attempt | None:
        """That attempt, or None where one of its ranks is not there yet, or no more."""
        pages = find_beats(self.run.meeting(number, nonce))
        ranks: list[Rank] = []
        complete = False
        try:
            for rank, path in sorted(pages.items()):
                begun = self._begun(number, nonce, f"rank-{rank}")
                process = tree.below(begun.pid, self._supervisor) if begun else None
                if begun is None or process is None or begun.world != len(pages):
                    return None
                ranks.append(Rank(process, os.pidfd_open(process.pid), Page(path)))
            complete = bool(ranks)
            return Attempt(number, nonce, ranks) if ranks else None
        except (OSError, ValueError):  # its page is still empty, or it has just ended
            return None
        finally:
            if not complete:
                for opened in ranks:
                    opened.page.close()
                    os.close(opened.fd)

    def _begun(self, number: int, nonce: str, writer: str) -> AttemptBegun | None:
        """How the stream of that writer begins; None where it is not there yet."""
        try:
            with Reader(self.run.stream(number, nonce, writer)) as reader:
                for _, event in reader.read(upto=1):
                    return event if isinstance(event, AttemptBegun) else None
        except (WalrecoverError, OSError):
            return None
        return None
