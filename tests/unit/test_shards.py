"""The shard store: every byte of a shard is covered by a digest that is checked."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from tests.support.protocol import tensor
from walrecover import shards
from walrecover.errors import Corrupt, StorageFailed
from walrecover.manifest import FileAt, TensorAt, digest_of
from walrecover.shards import (
    Shard,
    TensorData,
    digests,
    read_plain,
    verify_files,
    write_plain,
    write_tensors,
)

SHARD = "step-00000001.a1-0/rank-00000.safetensors"
PLAIN = "step-00000001.a1-0/rank-00000.msgpack"

Written = tuple[FileAt, dict[str, TensorAt]]


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    (tmp_path / SHARD).parent.mkdir()
    return tmp_path


def some_tensors() -> dict[str, TensorData]:
    weights = tensor(bytes(range(24)), "float32", (2, 3))
    return {
        "weights": weights,
        "tied": weights,
        "bytes": tensor(b"0123456", "uint8"),
        "scalar": tensor(b"\x00\x00\x80\x3f", "float32", ()),
        "empty": tensor(b"", "float32", (0, 3)),
        "complex": tensor(bytes(range(16)), "complex64", (2,)),
    }


def expected(tensors: dict[str, TensorData]) -> dict[str, bytes]:
    return {name: bytes(at.view()) for name, at in tensors.items()}


def read_all(snapshots: Path, written: Written) -> dict[str, bytes]:
    file, addresses = written
    found = {}
    with Shard(snapshots, SHARD, file) as shard:
        for name, at in addresses.items():
            data = bytearray(shard.size_of(at))
            shard.read(name, at, data)
            found[name] = bytes(data)
    return found


def verify(snapshots: Path, written: Written) -> None:
    verify_files(snapshots, {SHARD: written[0]}, written[1].items())


# --- digests ------------------------------------------------------------------------------------


def test_digests_are_of_the_bytes() -> None:
    found = digests(some_tensors())
    assert found == {
        name: "blake3:" + blake3(data).hexdigest()
        for name, data in expected(some_tensors()).items()
    }


def test_the_same_memory_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(shards, "digest_of", lambda view: hashed.append(len(view)) or "d")
    digests(some_tensors())
    assert sorted(hashed) == [0, 4, 7, 16, 24]


# --- tensors ------------------------------------------------------------------------------------


def test_tensors_come_back_as_they_were(snapshots: Path) -> None:
    tensors = some_tensors()
    written = write_tensors(snapshots, SHARD, tensors)
    assert read_all(snapshots, written) == expected(tensors)
    verify(snapshots, written)
    for name, at in written[1].items():
        assert (at.dtype, at.shape) == (tensors[name].dtype, tensors[name].shape)
        assert at.digest == digest_of(tensors[name].view())


def test_the_shard_opens_with_any_safetensors_tool(snapshots: Path) -> None:
    from safetensors import deserialize

    write_tensors(snapshots, SHARD, some_tensors())
    found = dict(deserialize((snapshots / SHARD).read_bytes()))
    assert bytes(found["weights"]["data"]) == bytes(range(24))
    assert found["weights"]["shape"] == [2, 3]


def test_tied_tensors_are_written_once(snapshots: Path) -> None:
    _, addresses = write_tensors(snapshots, SHARD, some_tensors())
    assert addresses["tied"] == addresses["weights"]
    assert len({at.key for at in addresses.values()}) == len(addresses) - 1


def test_one_piece_of_memory_with_two_shapes_is_two_tensors(snapshots: Path) -> None:
    flat = tensor(bytes(range(24)), "float32", (6,))
    tensors = {"flat": flat, "square": flat._replace(shape=(2, 3))}
    written = write_tensors(snapshots, SHARD, tensors)
    assert read_all(snapshots, written) == expected(tensors)


def test_a_shard_without_tensors(snapshots: Path) -> None:
    written = write_tensors(snapshots, SHARD, {})
    verify(snapshots, written)
    assert read_all(snapshots, written) == {}


def test_a_tensor_larger_than_a_chunk(snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK_BYTES", 10)
    tensors = some_tensors()
    written = write_tensors(snapshots, SHARD, tensors)
    verify(snapshots, written)
    assert read_all(snapshots, written) == expected(tensors)


def test_short_reads_are_gone_on_with(snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = some_tensors()
    written = write_tensors(snapshots, SHARD, tensors)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, place: real(fd, [views[0][:5]], place))
    assert read_all(snapshots, written) == expected(tensors)
    verify(snapshots, written)


# --- names are written once, and durable --------------------------------------------------------


def test_names_are_written_once(snapshots: Path) -> None:
    write_tensors(snapshots, SHARD, some_tensors())
    before = (snapshots / SHARD).read_bytes()
    with pytest.raises(StorageFailed, match="exists already"):
        write_tensors(snapshots, SHARD, {})
    write_plain(snapshots, PLAIN, b"first")
    with pytest.raises(StorageFailed, match="exists already"):
        write_plain(snapshots, PLAIN, b"second")
    assert (snapshots / SHARD).read_bytes() == before
    assert (snapshots / PLAIN).read_bytes() == b"first"


def test_both_files_are_synced(snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_tensors(snapshots, SHARD, some_tensors())
    write_plain(snapshots, PLAIN, b"data")
    assert synced == [str(snapshots / SHARD), str(snapshots / PLAIN)]


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_disk_that_refuses_is_storage_failed(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageFailed, match="cannot write"):
        write_tensors(snapshots, SHARD, some_tensors())
    with pytest.raises(StorageFailed, match="cannot write"):
        write_plain(snapshots, PLAIN, b"data")


def test_what_the_library_cannot_write_is_storage_failed(snapshots: Path) -> None:
    with pytest.raises(StorageFailed, match="cannot write"):
        write_tensors(snapshots, "missing/rank-00000.safetensors", some_tensors())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "?"), Corrupt("a link"), FileNotFoundError()])
def test_a_shard_that_cannot_be_read_back_is_storage_failed(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Its folder may have been swept away; training must go on."""

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(shards, "open_regular", fail)
    with pytest.raises(StorageFailed, match="cannot read back"):
        write_tensors(snapshots, SHARD, some_tensors())


# --- every byte is covered ----------------------------------------------------------------------


def test_one_flipped_byte_anywhere_is_found(snapshots: Path) -> None:
    tensors = some_tensors()
    written = write_tensors(snapshots, SHARD, tensors)
    plain = write_plain(snapshots, PLAIN, b"some plain state")
    all_files = {SHARD: written[0], PLAIN: plain}
    verify_files(snapshots, all_files, written[1].items())
    for name in all_files:
        good = (snapshots / name).read_bytes()
        for place in range(len(good)):
            damaged = bytearray(good)
            damaged[place] ^= 1 << place % 8
            (snapshots / name).write_bytes(damaged)
            with pytest.raises(Corrupt, match="rank-00000"):
                verify_files(snapshots, all_files, written[1].items())
        (snapshots / name).write_bytes(good)
    verify_files(snapshots, all_files, written[1].items())


def test_a_digest_that_is_not_checked_is_noticed(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: without the comparison of digests, a flip passes."""
    written = write_tensors(snapshots, SHARD, some_tensors())
    data = bytearray((snapshots / SHARD).read_bytes())
    data[-1] ^= 1
    (snapshots / SHARD).write_bytes(data)
    blind = {
        name: msgspec.structs.replace(at, digest=digest_of(b"")) for name, at in written[1].items()
    }

    class Blind:
        def __init__(self, **_: object) -> None: ...

        def update(self, _: object) -> None: ...

        def hexdigest(self) -> str:
            return digest_of(b"").removeprefix("blake3:")

    with pytest.raises(Corrupt):
        verify(snapshots, written)
    monkeypatch.setattr(shards, "blake3", Blind)
    verify(snapshots, (written[0], blind))


def test_two_claims_on_one_tensor_are_both_checked(snapshots: Path) -> None:
    written = write_tensors(snapshots, SHARD, some_tensors())
    right = written[1]["weights"]
    false = msgspec.structs.replace(right, digest=digest_of(b"?"))
    for claims in ([("a", right), ("b", false)], [("b", false), ("a", right)]):
        with pytest.raises(Corrupt, match="the bytes of b are not"):
            verify_files(snapshots, {SHARD: written[0]}, claims)


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("missing", lambda path: path.unlink()),
    ("bytes", lambda path: path.write_bytes(b"")),
    ("bytes", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ("bytes", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    ("link", lambda path: path.rename(path.with_name("x")) and path.symlink_to("x")),
    ("regular", lambda path: (path.unlink(), os.mkfifo(path))),
    ("regular", lambda path: (path.unlink(), path.mkdir())),
]


@pytest.mark.parametrize("what, damage", DAMAGE)
def test_a_damaged_shard_is_corrupt(
    snapshots: Path, what: str, damage: Callable[[Path], object]
) -> None:
    written = write_tensors(snapshots, SHARD, some_tensors())
    damage(snapshots / SHARD)
    with pytest.raises(Corrupt, match=what):
        verify(snapshots, written)


@pytest.mark.parametrize("what, damage", DAMAGE)
def test_a_damaged_plain_file_is_corrupt(
    snapshots: Path, what: str, damage: Callable[[Path], object]
) -> None:
    at = write_plain(snapshots, PLAIN, b"data")
    damage(snapshots / PLAIN)
    with pytest.raises(Corrupt, match=what):
        read_plain(snapshots, PLAIN, at)


@pytest.mark.parametrize("length", [0, 10**6, 2**63, 2**64 - 1])
def test_a_header_of_false_length_is_corrupt(snapshots: Path, length: int) -> None:
    file, _ = write_tensors(snapshots, SHARD, some_tensors())
    data = (snapshots / SHARD).read_bytes()
    (snapshots / SHARD).write_bytes(length.to_bytes(8, "little") + data[8:])
    with pytest.raises(Corrupt, match="header"):
        Shard(snapshots, SHARD, file)


def test_a_file_that_ends_while_it_is_read_is_corrupt(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_tensors(snapshots, SHARD, some_tensors())
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(Corrupt, match="is cut short"):
        verify(snapshots, written)


def test_a_tensor_that_is_not_there_is_corrupt(snapshots: Path) -> None:
    file, addresses = write_tensors(snapshots, SHARD, some_tensors())
    lost = msgspec.structs.replace(addresses["weights"], key="lost")
    with Shard(snapshots, SHARD, file) as shard:
        with pytest.raises(Corrupt, match="no tensor lost"):
            shard.read("weights", lost, None)
        with pytest.raises(Corrupt, match="no tensor lost"):
            shard.size_of(lost)


def test_what_the_disk_cannot_read_is_no_proof_of_damage(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_tensors(snapshots, SHARD, some_tensors())

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error"):
        verify(snapshots, written)


def test_an_oversized_plain_file_is_not_read(snapshots: Path) -> None:
    with pytest.raises(Corrupt, match="more than a plain state may have"):
        read_plain(snapshots, PLAIN, FileAt(shards.MAX_PLAIN_BYTES + 1, ""))


def test_no_descriptor_is_left_open(snapshots: Path) -> None:
    written = write_tensors(snapshots, SHARD, some_tensors())
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Corrupt):
        Shard(snapshots, SHARD, msgspec.structs.replace(written[0], digest="?"))
    with pytest.raises(Corrupt):
        Shard(snapshots, SHARD, msgspec.structs.replace(written[0], bytes=1))
    verify(snapshots, written)
    assert os.listdir("/proc/self/fd") == before
