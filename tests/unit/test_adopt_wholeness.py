"""Whether a file is whole: every truncation and every flipped byte of small ones."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from walrecover.adopt.wholeness import Look, look

TORCH = """
import sys, torch
state = {"weight": torch.arange(12.0).reshape(3, 4), "step": 7}
torch.save(state, sys.argv[1])
torch.serialization.set_crc32_options(False)
torch.save(state, sys.argv[2])
torch.save(state, sys.argv[3], _use_new_zipfile_serialization=False)
"""


@pytest.fixture(scope="session")
def torchs(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """What torch.save writes: its zip, one without checksums, and its old format."""
    folder = tmp_path_factory.mktemp("torch")
    paths = [folder / name for name in ("zip.pt", "bare.pt", "old.pt")]
    subprocess.run([sys.executable, "-c", TORCH, *map(str, paths)], check=True, timeout=300)
    whole, bare, old = (path.read_bytes() for path in paths)
    return whole, bare, old


def deep(data: bytes, name: str = "model.pt") -> Look:
    return look(io.BytesIO(data), name, deep=True)


def tensors() -> bytes:
    return save({"a": np.arange(6.0), "b": np.zeros((0, 3)), "c": np.ones(5, np.int8)})


def test_a_file_of_torch_is_whole_with_every_crc(torchs: tuple[bytes, ...]) -> None:
    found = deep(torchs[0])
    assert (found.format, found.whole) == ("torch", True)
    assert "CRC" in found.assurance
    assert look(io.BytesIO(torchs[0]), "model.pt", deep=False).whole


def test_a_file_of_torch_cut_anywhere_is_torn(torchs: tuple[bytes, ...]) -> None:
    whole = torchs[0]
    for size in range(len(whole)):
        assert deep(whole[:size]).whole is not True, size
        # A zip shows by its beginning what it is; of less than that nothing is known.
        assert deep(whole[:size]).whole is False or 0 < size < 4, size


def test_a_file_of_torch_written_over_an_older_one_in_place_is_torn(
    torchs: tuple[bytes, ...],
) -> None:
    whole = torchs[0]
    older = whole.replace(np.float32(11).tobytes(), np.float32(99).tobytes())
    assert len(older) == len(whole) and older != whole
    for size in range(1, len(whole), 7):
        mixed = whole[:size] + older[size:]
        assert deep(mixed).whole is (mixed == whole), size


def test_a_changed_byte_of_a_member_is_seen(torchs: tuple[bytes, ...]) -> None:
    whole = torchs[0]
    start = whole.index(np.arange(12.0, dtype=np.float32).tobytes())
    for place in range(start, start + 48):
        changed = bytearray(whole)
        changed[place] ^= 1
        assert deep(bytes(changed)).whole is False


def test_a_file_without_checksums_is_whole_by_its_structure(torchs: tuple[bytes, ...]) -> None:
    bare = torchs[1]
    assert deep(bare).whole and "without checksums" in deep(bare).assurance
    for size in range(4, len(bare)):
        assert deep(bare[:size]).whole is False, size


def test_the_old_format_of_torch_shows_nothing(torchs: tuple[bytes, ...]) -> None:
    assert deep(torchs[2])[:2] == ("opaque", None)


def test_a_file_of_safetensors_is_whole_by_header_and_lengths() -> None:
    data = tensors()
    for name in ("model.safetensors", "model.bin"):
        assert deep(data, name)[:2] == ("safetensors", True)
    for size in range(len(data)):
        assert deep(data[:size], "model.safetensors").whole is False, size
        assert deep(data[:size], "model.bin").whole is not True, size
    for more in (data + b"\0", bytes(len(data)), b"x" * len(data)):
        assert deep(more, "model.safetensors").whole is False


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": [2, 8]}}',
        b'{"a": {"data_offsets": [4, 8]}}',
        b'{"a": {"data_offsets": [8, 0]}}',
        b"[" * 5000,
    ],
)
def test_a_false_header_of_safetensors_is_torn(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    assert deep(data, "model.safetensors").whole is False


def test_a_header_that_says_it_is_huge_costs_nothing() -> None:
    assert deep(b"\xff" * 7 + b"\x7f{}", "model.safetensors").whole is False


@pytest.mark.parametrize("data", [b"", bytes(5000)])
def test_nothing_and_zeros_are_torn(data: bytes) -> None:
    assert deep(data, "model.bin").whole is False


def test_another_zip_is_whole_with_every_crc() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(1000), b=np.ones(3))
    data = buffer.getvalue()
    assert deep(data, "state.npz")[:2] == ("zip", True)
    assert not any(deep(data[:size], "state.npz").whole for size in range(0, len(data), 13))


METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@pytest.mark.parametrize("method", METHODS)
def test_p8_any_flipped_bit_of_a_zip_gets_an_answer(method: int) -> None:
    """Whatever zipfile raises at it: nothing but a failing disk is an error here."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), bytes(range(64)), method)
    data = buffer.getvalue()
    assert deep(data).whole
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            found = deep(bytes(changed))
            assert found.whole is not False or found.reason, (place, bit)


@pytest.mark.parametrize(("number", "says"), [(errno.EIO, "raises"), (errno.EINVAL, "torn")])
def test_a_failing_disk_is_not_taken_for_a_torn_file(number: int, says: str) -> None:
    class Failing(io.BytesIO):
        def seek(self, place: int, whence: int = 0, /) -> int:
            if whence == 0 and place:
                raise OSError(number, "planted")
            return super().seek(place, whence)

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"1")
    file = Failing(buffer.getvalue())
    if says == "torn":
        assert look(file, "model.pt", deep=True).whole is False
    else:
        with pytest.raises(OSError, match="planted"):
            look(file, "model.pt", deep=True)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    pickled = b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
    assert deep(buffer.getvalue()).format == "torch"
    assert not trap.exists()


def test_anything_else_shows_nothing() -> None:
    for data in (b"x", b"{}", json.dumps({"step": 7}).encode(), b"\x89HDF\r\n\x1a\n" + b"1" * 99):
        assert deep(data, "state.bin")[:2] == ("opaque", None)
