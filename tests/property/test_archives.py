"""An archive cut at any byte, or with any bit flipped: refused, or the same run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import archives
from tests.support.protocol import Launch, candidates, entries_of
from walrecover import recovery
from walrecover.errors import BadInput, Corrupt, StorageFailed, Torn, UnsupportedVersion
from walrecover.exporting import export
from walrecover.importing import bring_back
from walrecover.rundir import RunDir

REFUSED = (BadInput, Corrupt, UnsupportedVersion, StorageFailed)


class Made:
    """A run, its archive, and a folder to import into."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder / ".walrecover", "a-run")
        with Launch.begin(self.run, world=1) as launch:
            launch.train(2)
            launch.save()
        export(self.run, folder / "a.tar.zst")
        self.data = (folder / "a.tar.zst").read_bytes()
        self.tar = zstandard.ZstdDecompressor().decompressobj().decompress(self.data)
        self.file, self.root = folder / "b.tar.zst", folder / "n"

    def bring(self, data: bytes) -> RunDir:
        self.file.write_bytes(data)
        try:
            return bring_back(self.file, self.root).run
        except REFUSED:
            assert not (self.root / "runs").exists() or os.listdir(self.root / "runs") == []
            raise

    def require_same(self, run: RunDir) -> None:
        try:
            assert entries_of(run) == entries_of(self.run)
            assert candidates(run) == candidates(self.run)
            assert recovery.fold_run(run).records == recovery.fold_run(self.run).records
            assert recovery.choose(run, entries_of(run)).base == candidates(self.run)[0]
        finally:
            shutil.rmtree(self.root)


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with tempfile.TemporaryDirectory() as folder:
        yield Made(Path(folder))


def test_whole_it_is_the_same(made: Made) -> None:
    made.require_same(made.bring(made.data))


@given(data=st.data())
def test_cut_at_any_byte_it_is_refused(made: Made, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(made.data) - 1))
    with pytest.raises(Torn if at >= 4 else (BadInput, Torn)):
        made.bring(made.data[:at])


@given(data=st.data())
def test_p8_with_any_bit_flipped_it_is_refused_or_the_same(made: Made, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, 8 * len(made.data) - 1))
    flipped = bytearray(made.data)
    flipped[at // 8] ^= 1 << at % 8
    try:
        run = made.bring(bytes(flipped))
    except REFUSED:
        return
    made.require_same(run)


@settings(max_examples=max(20, settings().max_examples // 10))  # each reads a whole run back
@given(data=st.data())
def test_p8_a_tar_with_any_byte_changed_is_refused_or_the_same(
    made: Made, data: st.DataObject
) -> None:
    """As before, with zstd's own checksum made anew: what is left are tar's sums and ours."""
    blocks = range(0, len(made.tar), 512)
    headers = [start for start in blocks if made.tar[start + 257 : start + 262] == b"ustar"]
    at = data.draw(
        st.one_of(
            st.integers(0, len(made.tar) - 1),
            st.builds(lambda a, b: a + b, st.sampled_from(headers), st.integers(0, 511)),
        )
    )
    changed = bytearray(made.tar)
    changed[at] = data.draw(st.integers(0, 255))
    start = at - at % 512
    if start in headers and not 148 <= at - start < 156:  # with the header's own sum made anew
        block = changed[start : start + 512]
        block[148:156] = b" " * 8
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    try:
        run = made.bring(archives.compress(bytes(changed)))
    except REFUSED:
        return
    made.require_same(run)


@given(tar=st.binary(max_size=3000))
def test_any_bytes_are_refused(made: Made, tar: bytes) -> None:
    for data in (tar, archives.compress(tar), archives.compress(made.tar[:512] + tar)):
        with pytest.raises(REFUSED):
            made.bring(data)
