"""Whether a checkpoint file is whole, told from its bytes alone.

Owns the formats: a zip (torch's) by its central directory and every member's CRC, safetensors by
its header and lengths. Nothing is unpickled; torch is not imported. Must not write.
"""

from __future__ import annotations

import errno
import lzma
import struct
import zipfile
import zlib
from typing import IO, Any, Literal, NamedTuple

import msgspec

CHUNK = 1 << 20
_ZIP = b"PK\x03\x04"
_MOST_HEADER = 100_000_000
"""Bytes of a safetensors header, the format's own limit."""

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,  # a member ends before its length
    ValueError,  # a name that is no UTF-8
    OverflowError,  # a place beyond what can be sought
    MemoryError,  # a dictionary or directory that says it is huge
    NotImplementedError,  # a version, flag or method that zipfile does not know
    RuntimeError,  # "is encrypted": one bit of a flag
)
"""What zipfile raises where a byte of a zip is another one. So are two kinds of OSError: bz2's,
without a number, and EINVAL for a place before the file's beginning."""

Format = Literal["torch", "zip", "safetensors", "opaque"]


class Look(NamedTuple):
    """`whole` is None where the format cannot show it. `reason`: why it is not whole."""

    format: Format
    whole: bool | None
    assurance: str = ""
    reason: str = ""


class _Torn(Exception):
    pass


def look(file: IO[bytes], name: str, *, deep: bool) -> Look:
    """What the bytes of this open file show. Without `deep` only what costs nothing to read."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(4096)
    named = name.endswith(".safetensors")
    if size == 0:
        return Look("safetensors" if named else "opaque", False, reason="is empty")
    if not head.strip(b"\0"):
        return Look("opaque", False, reason="begins with zeros")
    if head.startswith(_ZIP):
        return _look_at_zip(file, deep)
    if named or _may_be_safetensors(head, size):
        try:
            _check_safetensors(file, size)
        except _Torn as torn:
            if named:  # else it may be anything that begins alike
                return Look("safetensors", False, reason=str(torn))
        else:
            return Look("safetensors", True, "safetensors: its header and lengths")
    return Look("opaque", None)


def _look_at_zip(file: IO[bytes], deep: bool) -> Look:
    kind: Format = "zip"
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.filename.endswith("/data.pkl") for member in members):
                kind = "torch"
            if not members:
                return Look(kind, False, reason="holds no member")
            checked = _check_members(archive, members) if deep else "nothing but its directory"
    except _DAMAGE as error:
        return Look(kind, False, reason=_sentence(error))
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise  # it is the disk that fails: this says nothing of the file
        return Look(kind, False, reason=_sentence(error))
    return Look(kind, True, f"{kind}: {checked}")


def _check_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> str:
    # torch.serialization.set_crc32_options(False) writes zeros for all of them.
    if not any(member.CRC for member in members) and any(m.file_size for m in members):
        for member in members:
            archive.open(member).close()
        return "every member's place; it was written without checksums"
    for member in members:
        with archive.open(member) as opened:
            while opened.read(CHUNK):
                pass
    return "every member's CRC"


def _sentence(error: Exception) -> str:
    if "not a zip file" in str(error):
        return "ends too early: the end of its directory is missing"
    return f"is damaged: {error}"


def _may_be_safetensors(head: bytes, size: int) -> bool:
    return size > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER


def _check_safetensors(file: IO[bytes], size: int) -> None:
    """Raises _Torn."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > _MOST_HEADER or 8 + length > size:
        raise _Torn("ends too early: its header is not all there")
    try:
        header = msgspec.json.decode(file.read(length), type=dict[str, dict[str, Any]])
        spans = sorted(
            msgspec.convert(tensor["data_offsets"], tuple[int, int])
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise _Torn(f"is damaged: its header cannot be read ({error})") from None
    end = 0
    for first, last in spans:
        if first != end or last < first:
            raise _Torn("is damaged: its tensors do not fill it")
        end = last
    if 8 + length + end != size:
        raise _Torn(f"ends too early: {size} bytes of {8 + length + end}")
