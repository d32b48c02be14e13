"""A tar in one zstd frame: written member by member with its sums, read as if it were hostile.

Owns the container's bytes and their limits; which members a run has is `archive`'s. tarfile and
zstandard do the formats, and what they let pass is refused here.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from walrecover.errors import BadInput, Corrupt, Torn

if TYPE_CHECKING:
    import zstandard

PIECE_BYTES = 1 << 20
_LEVEL = 1  # weights hardly compress; more effort would only be slower than the disk
_FED_BYTES = 2048  # of a frame at once: they become at most 64 MiB
_WINDOW_BYTES = 128 << 20
_PAX_BYTES = 2048
_MAGIC = bytes.fromhex("28b52ffd")

Progress = Callable[[int], object]
"""Is told how many bytes were done since it was told last."""


def require_zstandard() -> Any:
    """The package. Raises BadInput: it is not part of the base install."""
    try:
        import zstandard
    except ImportError:
        raise BadInput(
            "an archive needs the package zstandard: pip install 'walrecover[daemon]'"
        ) from None
    return zstandard


class Packer:
    """Writes members to a file that is open for writing. Raises OSError."""

    def __init__(self, file: IO[bytes], at: float, progress: Progress) -> None:
        compressor = require_zstandard().ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._frame: zstandard.ZstdCompressionWriter = compressor.stream_writer(file, closefd=False)
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=self._frame, mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE_BYTES
        )
        self._at, self._progress = int(at), progress
        self.sums: dict[str, str] = {}

    def __enter__(self) -> Packer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._tar.close()
            self._frame.close()  # type: ignore[no-untyped-call]

    def add(self, folder: str, place: str, source: IO[bytes], size: int) -> None:
        """A member `folder/place`, of exactly `size` bytes of what `source` holds."""
        member = tarfile.TarInfo(f"{folder}/{place}")
        member.size, member.mtime, member.mode = size, self._at, 0o600
        hashing = _Hashing(source, self._progress)
        self._tar.addfile(member, hashing)  # type: ignore[arg-type]  # it needs no more than read
        self.sums[place] = hashing.digest.hexdigest()

    def add_bytes(self, folder: str, place: str, data: bytes) -> None:
        self.add(folder, place, io.BytesIO(data), len(data))


class _Hashing:
    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        self._progress(len(data))
        return data


class Member(NamedTuple):
    """A regular file of an archive; `pieces` are its bytes, to be taken before the next member."""

    name: str
    size: int
    pieces: Iterator[bytes]


class Unpacker:
    """Reads an archive from a file that is open for reading.

    `limit`: bytes that the tar may have at most, raised by the caller once it knows better. All
    that it yields is a regular file with a name of text; everything else raises Corrupt, an early
    end Torn, what is no archive at all BadInput.
    """

    def __init__(self, file: IO[bytes], path: Path, limit: int, progress: Progress) -> None:
        self._frame = _Frame(file, path, limit, progress)
        self._path = path

    def allow(self, limit: int) -> None:
        self._frame.limit = limit

    def members(self) -> Iterator[Member]:
        """Each regular file, to the end of the archive, which must be that of the file."""
        begun = False
        try:
            with tarfile.open(
                fileobj=self._frame,
                mode="r|",
                tarinfo=_Strict,
                bufsize=PIECE_BYTES,  # type: ignore[call-overload]
            ) as tar:
                for found in tar:
                    begun = True
                    yield _checked(tar, found)
        except _FAULTS as error:
            if not begun:
                raise BadInput(f"{self._path} is not an archive of a run: {error}") from None
            raise Corrupt(f"it is damaged: {error}") from None
        self._frame.finish()


_FAULTS = (tarfile.TarError, ValueError, ArithmeticError, EOFError)
"""What tarfile raises over bytes that are no tar."""


class _Strict(tarfile.TarInfo):
    """Refuses a member by its header: before tarfile reads on, which it would do as far as the
    header says."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Strict:
        found = super().frombuf(buf, encoding, errors)
        if found.type == tarfile.XHDTYPE:
            if found.size > _PAX_BYTES:
                raise Corrupt(f"a header of {found.size} bytes is larger than any it should have")
        elif found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise Corrupt(f"the member {found.name!r} is {_KINDS.get(found.type, 'special')}")
        return found


_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


def _checked(tar: tarfile.TarFile, found: tarfile.TarInfo) -> Member:
    if found.pax_headers.keys() - {"path", "size"} or not found.isreg() or found.size < 0:
        raise Corrupt(f"the member {found.name!r} is special")
    return Member(found.name, found.size, _pieces(tar, found))


def _pieces(tar: tarfile.TarFile, found: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(found)
    assert file is not None
    try:
        while piece := file.read(PIECE_BYTES):
            yield piece
    except _FAULTS as error:
        raise Corrupt(f"it is damaged: {error}") from None


class _Frame:
    """The frame's content as a file to read from."""

    def __init__(self, file: IO[bytes], path: Path, limit: int, progress: Progress) -> None:
        self._zstd = require_zstandard()
        self._file, self._path, self._progress = file, path, progress
        self._decompressor = self._zstd.ZstdDecompressor(
            max_window_size=_WINDOW_BYTES
        ).decompressobj()
        self._waiting = bytearray()
        self._begun = False
        self._done = 0
        self.limit = limit

    def read(self, size: int) -> bytes:
        while len(self._waiting) < size and self._read_on():
            pass
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        return data

    def _read_on(self) -> bool:
        """False at the end of the frame."""
        if self._decompressor.eof:
            return False
        data = self._file.read(_FED_BYTES)
        if not self._begun and not data.startswith(_MAGIC[: len(data) or 1]):
            raise BadInput(f"{self._path} is not an archive of a run: it is not compressed by zstd")
        if not data:
            raise Torn("it is cut short: it ends in the middle")
        try:
            found = self._decompressor.decompress(data)
        except self._zstd.ZstdError as error:
            raise Corrupt(f"it is damaged: {error}") from None
        self._begun = True
        self._progress(len(data))
        self._done += len(found)
        if self._done > self.limit:
            raise Corrupt("it holds more bytes than it states")
        self._waiting += found
        return True

    def finish(self) -> None:
        """Read to the end of the frame, behind which nothing may be."""
        self._waiting.clear()
        while self._read_on():
            self._waiting.clear()
        if self._decompressor.unused_data or self._file.read(1):
            raise Corrupt("it goes on behind its end")
