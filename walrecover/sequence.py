"""The sequence's files: read from the first entry, create the next one if it is absent.

Owns numbering, durability and settling of doubtful writes (rule 1); what entries mean is
`entries`'. The seam that other backends implement is these two: `read` and `create_next`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from walrecover import entries as model
from walrecover.entries import Entry
from walrecover.errors import Corrupt, StorageFailed, WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.files import (
    SyncFailed,
    create_if_absent,
    read_regular,
    storage,
    sync_directory,
)

_NAME = re.compile(r"([0-9]{8}|[1-9][0-9]{8,})\.json")


class Sequence:
    """One run's sequence in a folder that all hosts of the run share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: list[Entry] = []
        self._mark: tuple[int, ...] = ()

    def read(self) -> list[Entry]:
        """All entries in order; entry n is item n-1.

        Entries never change, so that only those behind the ones already read are read again.
        Raises Corrupt for a gap or a damaged entry: decisions after it cannot be trusted, and
        guessing past it could bring back what was retired.
        """
        if self._known and self._mark_of(len(self._known)) == self._mark:
            self._read_on()
        else:
            self._known = []
            self._read_all()
        if self._known:
            self._mark = self._mark_of(len(self._known))
        return list(self._known)

    def _read_all(self) -> None:
        self._known = [self._entry(number) for number in range(1, self._count() + 1)]

    def _count(self) -> int:
        while True:
            numbers = self._numbers()
            gap = next((n for n, found in enumerate(numbers, start=1) if n != found), None)
            if gap is None:
                return len(numbers)
            # A listing that runs beside two creations may hold only the second of them.
            if not (self.folder / _name(gap)).exists():
                raise Corrupt(
                    f"sequence entry {gap} is missing in {self.folder}, though "
                    f"{numbers[gap - 1]} exists"
                )

    def _numbers(self) -> list[int]:
        try:
            matches = map(_NAME.fullmatch, os.listdir(self.folder))
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in matches if match)

    def _read_on(self) -> None:
        while True:
            try:
                self._known.append(self._entry(len(self._known) + 1))
            except FileNotFoundError:
                return

    def _mark_of(self, number: int) -> tuple[int, ...]:
        """What tells this entry's file from another of its name."""
        try:
            found = os.stat(self.folder / _name(number), follow_symlinks=False)
        except FileNotFoundError:
            return ()
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def _entry(self, number: int) -> Entry:
        data = read_regular(self.folder, _name(number), model.MAX_ENTRY_BYTES)
        return model.decode(data, number)

    def create_next(self, seen: int, entry: Entry) -> bool:
        """Create entry `seen` + 1; False where somebody else already did (then read again).

        An error in between is settled by reading back: True only when the entry there is this
        one and durable. Raises StorageFailed where that cannot be told or made so; the entry may
        exist then.
        """
        path = self.folder / _name(seen + 1)
        data = model.encode(entry)
        try:
            with storage(f"cannot write sequence entry {seen + 1}"):
                created = create_if_absent(
                    path, data, written="sequence.entry.written", linked="sequence.entry.linked"
                )
        except StorageFailed as error:
            # After a failed fsync the next one proves nothing (P9).
            if isinstance(error.__cause__, SyncFailed) or not self._is_ours(seen + 1, entry.id):
                raise
            # The link may have happened before the error: nobody acts on it before it is durable.
            with storage(f"sequence entry {seen + 1} exists but cannot be made durable"):
                sync_directory(self.folder)
            created = True
        if not created:
            # Over NFS a link can succeed and its answer be lost.
            created = self._is_ours(seen + 1, entry.id)
            if created:
                with storage(f"sequence entry {seen + 1} exists but cannot be made durable"):
                    sync_directory(self.folder)
        if created:
            failpoint("sequence.entry.synced")
        return created

    def _is_ours(self, number: int, identity: str) -> bool:
        try:
            return self._entry(number).id == identity
        except (OSError, Corrupt):
            return False

    def settle(self, decide: Callable[[list[Entry]], Entry | None]) -> tuple[list[Entry], bool]:
        """Read, decide, create; where another entry came first, read and decide anew.

        `decide` gets all entries and returns the next one or None (nothing to do); it may raise,
        which is final only where nothing was entered meanwhile.
        Returns the entries as they then stand, and whether ours is the last of them.
        """
        while True:
            found = self.read()
            # What was read may not be durable yet: nobody acts on an entry before it is.
            if found:
                with storage("cannot make the sequence durable"):
                    sync_directory(self.folder)
            try:
                entry = decide(found)
            except WalrecoverError:
                if len(self.read()) > len(found):
                    continue  # it was about a past that somebody has changed meanwhile
                raise
            if entry is None:
                return found, False
            if self.create_next(len(found), entry):
                return [*found, entry], True


def _name(number: int) -> str:
    return f"{number:08d}.json"
