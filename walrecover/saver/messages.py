"""What a training process and its saver tell each other. Owns both directions and their bytes.

Messages are wake-ups and news: nothing depends on one that is lost. What must not be lost stands in
the arena, on the disk, or in the sequence.
"""

from __future__ import annotations

import msgspec

from walrecover.entries import Holder


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What the saver is started with. `trainer`: the process whose captures they are. `verified`:
    manifests that were read back before. `supervisor`: the pid of the process that starts the next
    attempt, 0 where there is none."""

    root: str
    run: str
    journal: str = ""
    attempt: int
    nonce: str
    rank: int
    world: int
    trainer: Holder
    retention: int
    verified: tuple[str, ...] = ()
    supervisor: int = 0


# --- to the saver ---------------------------------------------------------------------------------


class Captured(msgspec.Struct, frozen=True, tag=True):
    """A slot is complete."""


class Hurry(msgspec.Struct, frozen=True, tag=True):
    """The training waits: no pauses until nothing is left to do."""


class End(msgspec.Struct, frozen=True, tag=True):
    """Finish what is there, then end. `fails`: the script has, and may be started again."""

    fails: bool = False


Order = Captured | Hurry | End


# --- from the saver -------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True):
    """It runs. Beside this message comes a pidfd of it."""

    pid: int


class Voted(msgspec.Struct, frozen=True, tag=True):
    """`lsn`: the rank's events through it are beside the shard. `seconds`: from its beginning.
    `state`: the digest of each attached object's whole state."""

    step: int
    end: bool
    lsn: int
    seconds: float
    state: dict[str, bytes]


class Committed(msgspec.Struct, frozen=True, tag=True):
    """By rank 0's saver."""

    step: int
    end: bool
    manifest: str


class Abandoned(msgspec.Struct, frozen=True, tag=True):
    step: int
    end: bool
    reason: str


class Said(msgspec.Struct, frozen=True, tag=True):
    """A line for people."""

    text: str


class Idle(msgspec.Struct, frozen=True, tag=True):
    """Nothing is left to do."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Its last word. `fenced`: a newer attempt has taken the run over; training must end."""

    reason: str
    fenced: bool = False


Report = Ready | Voted | Committed | Abandoned | Said | Idle | Ended

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
LARGEST_BYTES = 64 << 10
