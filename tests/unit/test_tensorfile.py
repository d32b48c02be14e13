"""Foreign safetensors files: what their own library writes is read, what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from walrecover import tensorfile
from walrecover.errors import Corrupt
from walrecover.manifest import digest_of
from walrecover.torch_adapter import comparing, memory

TENSORS = {
    "w": torch.randn(3, 4),
    "half": torch.randn(5).bfloat16(),
    "n": torch.tensor(3),
    "none": torch.empty(0, 2),
    "flags": torch.tensor([True, False]),
    "odd": torch.ones(2).to(torch.float8_e5m2),
}


def test_types_shapes_and_bytes_are_those_that_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    found = tensorfile.places(path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        at = found[name]
        assert (at.dtype, at.shape) == (str(tensor.dtype)[len("torch.") :], tuple(tensor.shape))
        assert tensorfile.digest(path, at) == digest_of(memory.bytes_of(tensor))


WHOLE = save(TENSORS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) * 8 - 1), st.integers(0, len(WHOLE)))
def test_a_flipped_bit_or_a_torn_end_is_refused_or_lies_within_the_file(
    tmp_path: Path, bit: int, length: int
) -> None:
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "b.safetensors"
    for damaged in (bytes(data), WHOLE[:length]):
        path.write_bytes(damaged)
        try:
            found = tensorfile.places(path)
        except Corrupt:
            continue
        for at in found.values():
            assert 0 <= at.offset <= at.offset + at.nbytes <= len(damaged)
            tensorfile.digest(path, at)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]},
        {"dtype": "pickle", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"shape": [2]},
        [1],
    ],
    ids=str,
)
def test_a_hostile_entry_is_corrupt(tmp_path: Path, entry: object) -> None:
    header = msgspec.json.encode({"w": entry})
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"8" * 8)
    with pytest.raises(Corrupt):
        tensorfile.places(path)


def test_a_shape_below_zero_is_no_shape(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[-2,-1],"data_offsets":[0,8]}}'
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(Corrupt, match="which is not its shape's number"):
        tensorfile.places(path)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_file_of_torch_is_mapped_not_read_where_its_format_allows(
    tmp_path: Path, as_zip: bool
) -> None:
    """Two checkpoints to compare need not both fit in memory."""
    path = tmp_path / "model.pt"
    torch.save({"w": TENSORS["w"]}, path, _use_new_zipfile_serialization=as_zip)
    held = comparing._load(str(path))
    assert torch.equal(held["w"], TENSORS["w"])
    assert (str(path) in Path("/proc/self/maps").read_text()) is as_zip
