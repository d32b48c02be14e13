"""Captures in slots of an arena, without a training."""

from __future__ import annotations

import ctypes

from walrecover.arena import layout
from walrecover.arena.layout import Described, Header, State, lay_out
from walrecover.arena.slots import Slot, encode_job


def fields(step: int) -> dict[str, object]:
    return {
        "run": "r", "step": step, "end": False, "attempt": 1, "nonce": "n", "rank": 0, "world": 1,
        "base": "", "position": "p", "writer": "rank-0", "events_after": 0, "lsn": 7,
        "finished": False,
    }  # fmt: skip


def fill(slot: Slot, generation: int, data: dict[str, bytes]) -> Header:
    placed = lay_out(
        [Described(n, "uint8", (len(b),), len(b), n, False, True) for n, b in data.items()]
    )
    job = encode_job(fields(generation), ["d", []], placed)
    head = Header(
        generation, generation, False, True, len(placed.rows), len(job), layout.seal(job),
        placed.data_bytes, placed.digest,
    )  # fmt: skip
    base = slot.begin(head)
    slot.put_job(job)
    for row in placed.rows:
        ctypes.memmove(base + row.offset, data[row.name], row.nbytes)
    assert slot.judge(lives=True).state is State.FILLING
    slot.complete(head)
    return head
