"""Shards that are written at a pace: the same bytes to every reader, whatever the disk takes."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from tests.support.protocol import tensor
from walrecover import paced, shards
from walrecover.errors import StorageFailed
from walrecover.shards import Shard, TensorData, Writing


def alternating() -> paced.Breathe:
    """Somebody else needs the disk for two of three pieces: both sizes are written, in turns."""
    busy = itertools.cycle([False, True, True])
    return lambda nbytes: next(busy)


WRITING = Writing(shards.digests, lambda path, tensors: paced.put(path, tensors, alternating()))
NAME = "step-00000001.a1-00000000/rank-00000.safetensors"


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    (tmp_path / NAME).parent.mkdir()
    return tmp_path


def written(snapshots: Path, tensors: dict[str, TensorData]) -> dict[str, tuple[str, bytes]]:
    """Write them, and what this library's reader finds of each: its type, and its bytes, which are
    what safetensors' own finds."""
    file, addresses = shards.write_tensors(snapshots, NAME, tensors, WRITING)
    shards.verify_files(snapshots, {NAME: file}, addresses.items())
    theirs = dict(deserialize((snapshots / NAME).read_bytes()))
    assert set(theirs) == {at.key for at in addresses.values()}
    found = {}
    with Shard(snapshots, NAME, file) as shard:
        for name, at in addresses.items():
            data = bytearray(shard.size_of(at))
            shard.read(name, at, data)
            assert bytes(theirs[at.key]["data"]) == bytes(data)
            found[name] = (at.dtype, bytes(data))
    (snapshots / NAME).unlink()
    return found


def given_(tensors: dict[str, TensorData]) -> dict[str, tuple[str, bytes]]:
    return {name: (tensor.dtype, bytes(tensor.view())) for name, tensor in tensors.items()}


def in_memory(sizes: list[int], gap: int, lead: int) -> tuple[object, list[TensorData]]:
    """Tensors that follow each other in aligned memory, `gap` bytes apart."""
    total = lead + sum(sizes) + gap * len(sizes)
    memory = mmap.mmap(-1, max(total, 1))
    memory[:total] = os.urandom(total)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + lead
    found = []
    for size in sizes:
        found.append(TensorData("uint8", (size,), base, size, memory))
        base += size + gap
    return memory, found


@pytest.mark.parametrize("lead", [0, 8])
@pytest.mark.parametrize("gap", [0, 64])
def test_files_of_any_size_hold_what_lay_in_memory(snapshots: Path, gap: int, lead: int) -> None:
    mib = paced.PIECE_BYTES
    for sizes in (
        [],
        [0],
        [1],
        [4096],
        [mib],
        [mib + 1],
        [mib - 8, 16, 3 * mib + 4096, 5, 0, 4091],
    ):
        _, found = in_memory(sizes, gap, lead)
        tensors = {f"t{n}": t for n, t in enumerate(found)}
        assert written(snapshots, tensors) == given_(tensors)


def test_beside_a_training_it_is_written_in_smaller_pieces(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fsync of the journal waits behind one of them."""
    sizes: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        sizes.append(len(data))
        return real(fd, data, offset)

    monkeypatch.setattr(paced.os, "pwrite", pwrite)
    _, tensors = in_memory([4 * paced.PIECE_BYTES], 0, 0)
    for busy, most in ((False, paced.PIECE_BYTES), (True, paced.BESIDE_BYTES)):
        sizes.clear()
        paced.put(snapshots / NAME, {"a": tensors[0]}, lambda _, busy=busy: busy)
        assert (snapshots / NAME).read_bytes().endswith(bytes(tensors[0].view()))
        assert set(sizes[1:]) == {most} or set(sizes[1:-1]) == {most}
        (snapshots / NAME).unlink()


@given(sizes=st.lists(st.integers(0, 9000), max_size=6), gap=st.sampled_from([0, 1, 4096]))
def test_any_tensors(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], gap: int) -> None:
    snapshots = tmp_path_factory.mktemp("any")
    (snapshots / NAME).parent.mkdir()
    _, found = in_memory(sizes, gap, 0)
    tensors = {f"t{n}": t for n, t in enumerate(found)}
    assert written(snapshots, tensors) == given_(tensors)


def test_tied_tensors_and_types_that_safetensors_does_not_know(snapshots: Path) -> None:
    weights = tensor(b"x" * 16, "float32", (4,))
    odd = tensor(b"y" * 32, "complex128", (2,))
    one = tensor(b"z" * 2, "bfloat16", ())
    tensors = {"a": weights, "tied": weights, "odd": odd, "one": one}
    assert written(snapshots, tensors) == given_(tensors)


class Refusing:
    """A file system that does not take O_DIRECT: when it is opened, or only when it is written."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.open, self.pwrite = os.open, os.pwrite
        self.synced = 0

    def opening(self, path: object, flags: int, mode: int = 0o777, **more: object) -> int:
        if self.when == "opened" and flags & os.O_DIRECT:
            os.close(self.open(path, flags & ~os.O_DIRECT, mode))  # type: ignore[arg-type]
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.open(path, flags, mode, **more)  # type: ignore[arg-type]

    def writing(self, fd: int, data: memoryview, place: int) -> int:
        import fcntl

        if self.when == "written" and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.pwrite(fd, data, place)


@pytest.fixture(params=["opened", "written"])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    system = Refusing(request.param)
    fdatasync = os.fdatasync

    def syncing(fd: int) -> None:
        system.synced += 1
        fdatasync(fd)

    monkeypatch.setattr(paced.os, "open", system.opening)
    monkeypatch.setattr(paced.os, "pwrite", system.writing)
    monkeypatch.setattr(paced.os, "fdatasync", syncing)
    yield system


def test_where_the_page_cache_cannot_be_passed_it_never_grows_far(
    snapshots: Path, refusing: Refusing
) -> None:
    _, found = in_memory([3 * paced.SYNCED_AT_ONCE], 0, 0)
    assert written(snapshots, {"a": found[0]}) == given_({"a": found[0]})
    assert refusing.synced == 3


def test_a_full_disk_is_found_before_anything_is_written(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(paced.os, "pwrite", lambda *given: written.append(given))

    def full(fd: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(paced, "_preallocate", full)
    with pytest.raises(StorageFailed, match="No space left"):
        shards.write_tensors(snapshots, NAME, {"a": tensor(b"abc")}, WRITING)
    assert not written


def test_a_name_is_written_once(snapshots: Path) -> None:
    path = snapshots / NAME
    path.write_bytes(b"an earlier one")
    with pytest.raises(FileExistsError):
        paced.put(path, {"a": tensor(b"abc")}, lambda _: None)
    assert path.read_bytes() == b"an earlier one"


def test_whoever_sets_the_pace_is_asked_after_every_piece(snapshots: Path) -> None:
    breaths: list[int] = []
    _, tensors = in_memory([3 * paced.PIECE_BYTES], 0, 0)
    paced.put(snapshots / NAME, {"a": tensors[0]}, breaths.append)
    assert sum(breaths) == (snapshots / NAME).stat().st_size
    assert len(breaths) == 4 and max(breaths) == paced.PIECE_BYTES
