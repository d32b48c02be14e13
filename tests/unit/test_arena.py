"""The arena: what a slot says is whole, however its writer died; and memory that leaves nothing."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.slots import fill
from walrecover import cgroups
from walrecover.arena import layout
from walrecover.arena.layout import (
    PAGE,
    Described,
    Header,
    Judged,
    SlotSeen,
    State,
    choose,
    judge,
    lay_out,
    regions,
)
from walrecover.arena.memory import SPARE_BYTES, Arena
from walrecover.arena.slots import TooLarge, view
from walrecover.errors import Corrupt, StorageFailed

ROOM = 16 * PAGE


def header(generation: int, *, wanted: bool = True, end: bool = False, job: bytes = b"j") -> Header:
    return Header(
        generation, generation * 10, end, wanted, 2, len(job), layout.seal(job), 64, b"l" * 16
    )


# --- layout ---------------------------------------------------------------------------------------

DTYPES = {"float64": 8, "int64": 8, "float32": 4, "bfloat16": 2, "uint8": 1}
described = st.lists(
    st.tuples(
        st.sampled_from(sorted(DTYPES)),
        st.lists(st.integers(0, 5), max_size=3),
        st.integers(0, 6),
        st.booleans(),
    ),
    max_size=12,
).map(
    lambda many: [
        Described(
            f"t{n}",
            kind,
            tuple(shape),
            DTYPES[kind] * _product(shape),
            (memory, kind),
            not written,
            written,
        )
        for n, (kind, shape, memory, written) in enumerate(many)
    ]
)


def _product(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@given(described)
def test_tensors_never_overlap_unless_they_are_the_same_memory(tensors: list[Described]) -> None:
    placed = lay_out(tensors)
    assert [row.name for row in placed.rows] == [t.name for t in tensors]
    spans = {}
    for row, tensor in zip(placed.rows, tensors, strict=True):
        assert row.offset % DTYPES[row.dtype] == 0
        assert row.offset + row.nbytes <= placed.data_bytes
        if row.nbytes:
            spans[row.offset, row.nbytes] = (tensor.memory, tensor.written)
            assert row.offset == next(
                r.offset
                for r, t in zip(placed.rows, tensors, strict=True)
                if (t.memory, t.nbytes, t.written) == (tensor.memory, tensor.nbytes, tensor.written)
            )
    ordered = sorted(spans)
    for (begin, size), (after, _) in itertools.pairwise(ordered):
        assert begin + size <= after


@given(described)
def test_what_this_rank_writes_lies_without_gaps_from_the_beginning(
    tensors: list[Described],
) -> None:
    placed = lay_out(tensors)
    spans = sorted({(r.offset, r.nbytes) for r in placed.rows if r.written and r.nbytes})
    place = 0
    for begin, size in spans:
        assert begin == place
        place += size
    assert all(r.offset >= place for r in placed.rows if r.nbytes and not r.written)


def test_another_layout_has_another_digest() -> None:
    one = Described("a", "float32", (2,), 8, 1, False, True)
    digests = {
        lay_out([one]).digest,
        lay_out([one._replace(dtype="int32")]).digest,
        lay_out([one._replace(shape=(1, 2))]).digest,
        lay_out([one, one._replace(name="b")]).digest,
        lay_out([one, one._replace(name="b", memory=2)]).digest,
    }
    assert len(digests) == 5


# --- judging --------------------------------------------------------------------------------------


def written(slot: bytearray, head: Header, job: bytes, data: bytes) -> list[tuple[int, bytes]]:
    """The stores of a capture, in their order, as `Slot` makes them."""
    where = regions(len(job), head.rows, len(data))
    return [
        (layout.COMPLETION_AT, bytes(8)),
        (0, layout.encode(head, complete=False)),
        (layout.JOB_AT, job),
        (where.data, data),
        (layout.COMPLETION_AT, layout.completion(head).to_bytes(8, "little")),
    ]


def stored(slot: bytearray, stores: list[tuple[int, bytes]], cut: int) -> bool:
    """Apply the first `cut` bytes of what is stored; True where that was all."""
    for place, data in stores:
        some = data[:cut]
        slot[place : place + len(some)] = some
        cut -= len(some)
    return cut >= 0 and some == data


def capture(generation: int, job: bytes, data: bytes) -> tuple[Header, bytes, bytes]:
    head = Header(
        generation, generation, False, True, 0, len(job), layout.seal(job), len(data), bytes(16)
    )
    return head, job, data


@given(
    st.binary(min_size=1, max_size=40),
    st.binary(min_size=1, max_size=40),
    st.binary(min_size=1, max_size=80),
    st.integers(0, 300),
    st.booleans(),
)
def test_a_slot_torn_at_any_byte_is_never_complete(
    old_job: bytes, job: bytes, data: bytes, cut: int, lives: bool
) -> None:
    room = 6 * PAGE
    slot = bytearray(room)
    before, after = capture(1, old_job, data[::-1]), capture(2, job, data)
    slot[: layout.HEADER_BYTES] = layout.encode(layout.EMPTY, complete=False)
    assert stored(slot, written(slot, *before), 10**6)
    untouched = bytes(slot)
    whole = stored(slot, written(slot, *after), cut)
    found = judge(bytes(slot[: layout.HEADER_BYTES]), room, lives=lives)
    if found.state is State.COMPLETE:
        assert found.header == (after[0] if bytes(slot) != untouched else before[0])
        where = found.header.regions
        expected = after if found.header.generation == 2 else before
        assert slot[layout.JOB_AT : layout.JOB_AT + len(expected[1])] == expected[1]
        assert slot[where.data : where.data + len(expected[2])] == expected[2]
    else:
        assert not whole
        assert found.header is None
        assert lives or found.state is State.TORN


def test_a_slot_torn_at_every_byte_of_one_capture() -> None:
    """The same without chance, so that each boundary of the stores is among them."""
    before, after = capture(1, b"old job", b"old data"), capture(2, b"the new job", b"new data")
    total = sum(len(data) for _, data in written(bytearray(), *after))
    states = []
    for cut in range(total + 1):
        slot = bytearray(6 * PAGE)
        slot[: layout.HEADER_BYTES] = layout.encode(layout.EMPTY, complete=False)
        stored(slot, written(slot, *before), 10**6)
        stored(slot, written(slot, *after), cut)
        states.append(judge(bytes(slot[: layout.HEADER_BYTES]), len(slot), lives=False).state)
    assert states[0] is State.COMPLETE and states[-1] is State.COMPLETE
    assert State.COMPLETE not in states[1:-1]


@given(st.integers(0, layout.HEADER_BYTES * 8 - 1))
def test_one_flipped_bit_of_a_header_is_seen(bit: int) -> None:
    words = bytearray(layout.encode(header(3), complete=True))
    assert judge(bytes(words), ROOM, lives=True) == Judged(State.COMPLETE, header(3))
    words[bit // 8] ^= 1 << bit % 8
    assert judge(bytes(words), ROOM, lives=False).state is State.TORN


def test_a_header_that_promises_more_than_the_slot_has_is_torn() -> None:
    head = header(1)._replace(data_bytes=ROOM)
    found = judge(layout.encode(head, complete=True), ROOM, lives=True)
    assert found.state is State.TORN and str(ROOM) in found.reason


def test_states_of_a_slot() -> None:
    empty = layout.encode(layout.EMPTY, complete=False)
    filling = layout.encode(header(4), complete=False)
    assert judge(empty, ROOM, lives=True).state is State.FREE
    assert judge(empty, ROOM, lives=False).state is State.FREE
    assert judge(filling, ROOM, lives=True).state is State.FILLING
    assert judge(filling, ROOM, lives=False).state is State.TORN
    assert judge(b"", ROOM, lives=True).state is State.TORN
    assert judge(bytes(layout.HEADER_BYTES), ROOM, lives=True).state is State.TORN


# --- which slot the next capture takes ------------------------------------------------------------


def seen(number: int, generation: int, let_go: int = 0, *, wanted: bool = True) -> SlotSeen:
    judged = (
        Judged(State.COMPLETE, header(generation, wanted=wanted))
        if generation
        else Judged(State.FREE)
    )
    return SlotSeen(number, judged, let_go)


@pytest.mark.parametrize(
    ("slots", "lives", "chosen"),
    [
        ([seen(0, 0), seen(1, 0)], True, 0),
        ([seen(0, 1), seen(1, 0)], True, 1),
        ([seen(0, 1), seen(1, 2)], True, None),  # the saver holds the first, and 2 is the newest
        ([seen(0, 1, 1), seen(1, 2)], True, 0),
        ([seen(0, 3, 1), seen(1, 2, 2)], True, 1),
        ([seen(0, 3, 1), seen(1, 2, 1)], True, None),  # what was let go was an earlier capture
        ([seen(0, 1), seen(1, 2)], False, 0),  # its saver is dead
        ([seen(0, 1, wanted=False), seen(1, 2, wanted=False)], True, 0),
        ([seen(0, 1), seen(1, 2, wanted=False), seen(2, 3, wanted=False)], True, 1),
        ([seen(0, 2, wanted=False), seen(1, 1)], True, None),  # the newest is not given up
    ],
)
def test_the_slot_of_the_next_capture(
    slots: list[SlotSeen], lives: bool, chosen: int | None
) -> None:
    """Rule 8."""
    assert choose(slots, saver_lives=lives) == chosen


# --- in memory ------------------------------------------------------------------------------------


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(2, ROOM)
    yield made
    made.close()


def test_another_process_reads_what_was_filled(arena: Arena) -> None:
    head = fill(arena.slots[1], 1, {"a": b"hello", "b": b"world!"})
    other = Arena.attach(os.dup(arena.fd))
    try:
        slot = other.slots[1]
        assert slot.address != arena.slots[1].address
        assert slot.judge(lives=True) == Judged(State.COMPLETE, head)
        job, rows = slot.job(head)
        assert (job.step, job.lsn) == (1, 7)
        found = {r.name: bytes(view(slot.data_address(head) + r.offset, r.nbytes)) for r in rows}
        assert found == {"a": b"hello", "b": b"world!"}
        assert slot.digests(head) is None
        slot.set_digests(head, [b"a" * 32, b"b" * 32])
        assert slot.digests(head) == [b"a" * 32, b"b" * 32]
        assert arena.slots[1].let_go == 0
        slot.release(head)
        assert arena.slots[1].let_go == 1
    finally:
        other.close()


def test_a_slot_makes_the_stores_of_a_capture_in_the_order_that_is_torn_above(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = arena.slots[0]
    stores: list[tuple[int, bytes]] = []

    class Word:
        @property
        def value(self) -> int:
            raise AssertionError("not read")

        @value.setter
        def value(self, word: int) -> None:
            stores.append((layout.COMPLETION_AT, word.to_bytes(8, "little")))

    def store(address: int, data: bytes) -> None:
        stores.append((address - slot.address, data))

    monkeypatch.setattr(slot, "_completion", Word())
    monkeypatch.setattr(slot, "_store", store)
    head, job, data = capture(3, b"the job", b"the data")
    where = slot.begin(head) - slot.address
    slot.put_job(job)
    stores.append((where, data))
    slot.complete(head)
    assert stores == written(bytearray(), head, job, data)


def test_digests_of_an_earlier_capture_count_for_nothing(arena: Arena) -> None:
    slot = arena.slots[0]
    head = fill(slot, 1, {"a": b"hello"})
    slot.set_digests(head, [b"a" * 32])
    again = fill(slot, 2, {"a": b"hullo"})
    assert slot.digests(again) is None
    assert not slot.is_still(head) and slot.is_still(again)


def test_a_changed_byte_of_a_job_is_seen(arena: Arena) -> None:
    slot = arena.slots[0]
    head = fill(slot, 1, {"a": b"hello"})
    place = slot.address + layout.JOB_AT + head.job_bytes // 2
    byte = ctypes.c_ubyte.from_address(place)
    byte.value ^= 1
    with pytest.raises(Corrupt, match="not the one that was sealed"):
        slot.job(head)


def test_what_does_not_fit_leaves_the_slot_as_it_was(arena: Arena) -> None:
    slot = arena.slots[0]
    head = fill(slot, 1, {"a": b"hello"})
    with pytest.raises(TooLarge) as caught:
        slot.begin(head._replace(generation=2, data_bytes=ROOM))
    assert caught.value.bytes > ROOM
    assert slot.is_still(head)


def test_memory_that_is_not_there_is_refused_beforehand() -> None:
    room = 1 << 20
    with pytest.raises(StorageFailed, match="are available"):
        Arena.create(2, room, lambda: 2 * room + SPARE_BYTES)
    Arena.create(2, room, lambda: 2 * room + SPARE_BYTES + PAGE).close()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1 << 30),
        ({"memory.max": "max", "memory.current": "5"}, 1 << 30),
        ({"memory.max": "1000", "memory.current": "700"}, 300),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "cache 400\ntotal_inactive_file 200\n",
            },
            300,
        ),
        ({"memory.limit_in_bytes": str((1 << 63) - 4096), "memory.usage_in_bytes": "9"}, 1 << 30),
        ({"memory.max": "10", "memory.current": "12"}, 0),
    ],
)
def test_what_is_available_is_the_least_of_machine_and_group(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 1048576 kB\n")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cgroups.available(tmp_path, meminfo) == expected


def test_memory_is_touched_before_it_is_used(arena: Arena) -> None:
    arena.touch()
    assert os.fstat(arena.fd).st_blocks * 512 >= arena.bytes


def test_nobody_can_cut_the_memory(arena: Arena) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, PAGE)


@pytest.mark.parametrize("what", ["empty", "unsealed", "another magic"])
def test_what_is_no_arena_is_refused(what: str) -> None:
    fd = os.memfd_create("no arena", os.MFD_ALLOW_SEALING)
    if what != "empty":
        source = Arena.create(1, ROOM)
        os.write(fd, os.pread(source.fd, source.bytes, 0))
        source.close()
        if what == "another magic":
            os.pwrite(fd, b"X", 0)
    try:
        with pytest.raises(Corrupt):
            Arena.attach(fd)
    finally:
        os.close(fd)


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("walrecover-arena")


def test_nothing_is_left_of_a_closed_arena() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), mappings()
    for _ in range(20):
        Arena.create(2, ROOM).close()
    assert (len(os.listdir("/proc/self/fd")), mappings()) == before


def test_a_forked_child_holds_neither_descriptor_nor_memory(arena: Arena) -> None:
    """A loader's worker that outlives its parent must not keep the arena."""
    fd = arena.fd
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        held = mappings() or arena.fd != -1
        try:
            os.fstat(fd)
            held = True
        except OSError:
            pass
        os.write(writing, b"1" if held else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1) == b"0"
    os.close(reading)
    os.close(writing)
    assert mappings() and os.fstat(fd)
