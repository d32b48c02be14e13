"""The digests of a capture, taken from its slot beside the write of its shard.

Owns each row's digest, taken once, and whether they count: only what was digested while its process
could be trusted is what that process captured (specs/18-arena.md).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from blake3 import blake3

from walrecover.arena.layout import Header, Row
from walrecover.arena.slots import Slot, view
from walrecover.failpoints import failpoint
from walrecover.paced import Breathe
from walrecover.saver.trainer import Trainer
from walrecover.shards import TensorData

HASHED_AT_ONCE = 2 << 20
SCRIBBLED = "its bytes are not those that were digested when it was captured"

_Place = tuple[int, int]


class Lost(Exception):
    """A capture that cannot be made durable. Its message says why."""


class Digesting:
    """Of one capture's rows."""

    def __init__(
        self, slot: Slot, header: Header, rows: tuple[Row, ...], trainer: Trainer, breathe: Breathe
    ) -> None:
        """Raises Lost where the bytes may not be what was captured: their process died of its own
        doing before anybody had digested them. `breathe` is called in whatever thread."""
        self._slot, self._header = slot, header
        self._trainer, self._breathe = trainer, breathe
        base = slot.data_address(header)
        self._places = [(base + row.offset, row.nbytes) for row in rows]
        self._missing = set(self._places)
        self._found: dict[_Place, bytes] = {}
        self._lock = threading.Lock()
        self._known = slot.digests(header)
        self._counts = self._known is not None
        if not self._counts and not trainer.is_trusted:
            raise Lost(
                f"the process that captured it {trainer.ending} before it was digested: what lies "
                f"in its memory is not to be trusted"
            )
        if not self._places:
            self._keep()

    def named(self, tensors: Mapping[str, TensorData]) -> dict[str, str]:
        """As `shards.Writing` asks for them, in whatever thread."""
        return {
            name: "blake3:" + self._of((tensor.address, tensor.nbytes)).hex()
            for name, tensor in tensors.items()
        }

    def settle(self) -> None:
        """When all was written, before the vote. What a crashing process has scribbled on between
        digest and write is on the disk now: then its memory differs, too. Raises Lost."""
        found = [self._of(place) for place in self._places]
        self._require_still()
        if not self._counts:
            raise Lost(f"the process that captured it {self._trainer.ending} meanwhile")
        if self._known is not None and self._known != found:
            raise Lost(SCRIBBLED)
        if not self._trainer.is_trusted:
            again = {place: self._hash(place) for place in set(self._places)}
            self._require_still()
            if again != self._found:
                raise Lost(SCRIBBLED)

    def _of(self, place: _Place) -> bytes:
        found = self._found.get(place)
        if found is None:
            found = self._hash(place)
            with self._lock:
                self._found[place] = found
                self._missing.discard(place)
                if not self._missing:
                    self._keep()
        return found

    def _keep(self) -> None:
        """All are there: from here on they tell what was captured, whatever its process does. It
        may have died while they were taken."""
        if not self._counts and self._slot.is_still(self._header) and self._trainer.is_trusted:
            self._slot.set_digests(self._header, [self._found[place] for place in self._places])
            self._counts = True
        failpoint("saver.digested")

    def _require_still(self) -> None:
        """Rule 8."""
        if not self._slot.is_still(self._header):
            raise Lost("its slot was filled again before it was saved")

    def _hash(self, place: _Place) -> bytes:
        address, nbytes = place
        hasher = blake3()
        for begin in range(0, nbytes, HASHED_AT_ONCE):
            size = min(HASHED_AT_ONCE, nbytes - begin)
            hasher.update(view(address + begin, size))
            self._breathe(size)
        return bytes(hasher.digest())
