"""Votes and manifests: what one rank wrote, and what together makes a snapshot.

Owns the types, their bytes and the pure agreement between votes; files are `shards`' and
`snapshot`'s. Everything read from a run directory is hostile until checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from xxhash import xxh3_128

from walrecover import plain
from walrecover.entries import digest_of as digest_of
from walrecover.entries import guard, snapshot_name, unguard
from walrecover.entries import is_run_name as is_run_name
from walrecover.errors import Corrupt, UnsupportedVersion

T = TypeVar("T")

FORMAT = 1
MAX_MANIFEST_BYTES = 256 << 20
_SNAPSHOT = r"step-([0-9]{8,16})(-end)?\.(a[0-9]{1,10}-[0-9a-z]{1,32})"
_NAME = re.compile(_SNAPSHOT)
_FILE = re.compile(rf"{_SNAPSHOT}/rank-[0-9]{{5,9}}\.(?:safetensors|msgpack)")


class FileAt(msgspec.Struct, frozen=True):
    """A file below `snapshots/`. `digest`: blake3 of a msgpack file's bytes, or of a safetensors
    file's header (its tensors carry their own, so that every byte is covered once)."""

    bytes: int
    digest: str


class TensorAt(msgspec.Struct, frozen=True):
    """A tensor is addressed by (file, digest); its name inside the file is its digest's `key`."""

    file: str
    key: str
    digest: str
    dtype: str
    shape: tuple[int, ...]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's vote for one capture: what it wrote, and what it must agree on with the others.

    `base`: manifest digest of the plan's base ("" from the beginning). `position`: digest of the
    data position. `replicated`: digests of tensors that all ranks hold alike, by name; where a
    rank's vote leaves a replicated tensor's bytes to rank 0, its address is rank 0's.
    `lsn`, `chain`: how far this rank's stream was durable when it voted (rule 6).
    """

    run: str
    step: int
    end: bool
    attempt: int
    nonce: str
    rank: int
    world: int
    base: str
    position: str
    files: dict[str, FileAt]
    tensors: dict[str, TensorAt]
    replicated: dict[str, str]
    writer: str
    lsn: int
    chain: str
    format: int = FORMAT


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of a snapshot: every rank's vote. Its digest in the sequence is the commit."""

    run: str
    step: int
    end: bool
    attempt: int
    nonce: str
    world: int
    parts: tuple[Part, ...]
    part_digests: tuple[str, ...]
    format: int = FORMAT

    @property
    def name(self) -> str:
        return snapshot_name(self.step, self.attempt, self.nonce, self.end)

    def files(self) -> dict[str, FileAt]:
        """Every file of the snapshot, by its path below `snapshots/`."""
        return {path: at for part in self.parts for path, at in part.files.items()}

    def older_files(self) -> dict[str, FileAt]:
        """Those that older snapshots wrote, and this one references."""
        return {p: at for p, at in self.files().items() if not p.startswith(f"{self.name}/")}

    def bytes(self) -> int:
        return sum(at.bytes for at in self.files().values())


class _Format(msgspec.Struct):
    format: int = 0


def encode_part(part: Part) -> bytes:
    """With its own digest: nobody else knows what a vote should be before it is committed."""
    return guard(msgspec.json.encode(part))


def decode_part(data: bytes) -> Part:
    """Raises Corrupt or UnsupportedVersion."""
    try:
        body = unguard(data)
    except (Corrupt, UnsupportedVersion) as error:
        raise type(error)(f"vote: {error}") from None
    part = _decode(body, Part, "vote")
    _check_part(part)
    return part


def encode_manifest(manifest: Manifest) -> bytes:
    """Without a digest of its own, which is in the sequence."""
    return msgspec.json.encode(manifest) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Raises Corrupt (which rule it breaks) or UnsupportedVersion."""
    manifest = _decode(data, Manifest, "manifest")
    reason = disagreement(manifest.parts)
    if reason:
        raise Corrupt(f"manifest: {reason}")
    first = manifest.parts[0]
    if (first.run, first.step, first.end, first.attempt, first.nonce, first.world) != (
        manifest.run,
        manifest.step,
        manifest.end,
        manifest.attempt,
        manifest.nonce,
        manifest.world,
    ):
        raise Corrupt("manifest: its votes are for another snapshot")
    sizes: dict[str, FileAt] = {}
    for part in manifest.parts:
        _check_part(part)
        for path, at in part.files.items():
            if sizes.setdefault(path, at) != at:
                raise Corrupt(f"manifest: two descriptions of {path}")
    for part in manifest.parts:
        for name, tensor in part.tensors.items():
            if tensor.file not in sizes:
                raise Corrupt(f"manifest: {name} lies in {tensor.file}, which no vote lists")
    return manifest


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise UnsupportedVersion(f"{what}: format {found}, and this release reads {FORMAT}")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{what}: {error}") from None


def _check_part(part: Part) -> None:
    if not is_run_name(part.run):
        raise Corrupt(f"vote of rank {part.rank}: {part.run!r} is not a run's name")
    for path, at in part.files.items():
        if not _FILE.fullmatch(path):
            raise Corrupt(f"vote of rank {part.rank}: {path!r} is not a shard's name")
        if at.bytes < 0:
            raise Corrupt(f"vote of rank {part.rank}: {path} has {at.bytes} bytes")
    for name, tensor in part.tensors.items():
        if not _FILE.fullmatch(tensor.file) or any(n < 0 for n in tensor.shape):
            raise Corrupt(f"vote of rank {part.rank}: {name} has a false address")


def parse_snapshot_name(name: str) -> tuple[int, bool, str] | None:
    """(step, end, attempt's label) of a snapshot folder's name, or None for another name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), bool(match[2]), match[3]) if match else None


def disagreement(parts: Sequence[Part]) -> str | None:
    """Why these votes do not make a snapshot, or None where they do (rule 12)."""
    if not parts:
        return "no votes"
    first = parts[0]
    if [part.rank for part in parts] != list(range(len(parts))) or len(parts) != first.world:
        return f"votes of ranks {[part.rank for part in parts]} for a world of {first.world}"
    for part in parts[1:]:
        for field in ("run", "step", "end", "attempt", "nonce", "world", "base"):
            mine, other = getattr(first, field), getattr(part, field)
            if mine != other:
                return f"{field} differs: rank 0 has {mine}, rank {part.rank} {other}"
        if part.position != first.position:
            return f"rank {part.rank} stands at another data position than rank 0"
        if part.replicated != first.replicated:
            names = sorted(
                name
                for name in part.replicated.keys() | first.replicated.keys()
                if part.replicated.get(name) != first.replicated.get(name)
            )
            return (
                f"replicated state of rank {part.rank} differs from rank 0's in "
                f"{', '.join(names[:5])}" + (" …" if len(names) > 5 else "")
            )
    return None


def seal_manifest(parts: Sequence[Part], digests: Sequence[str]) -> Manifest:
    """The manifest of votes that agree (check `disagreement` first).

    Only rank 0 knows under which key it wrote what it holds for all (of tied tensors, one).
    """
    first = parts[0]
    held = {name: at for name, at in first.tensors.items() if name in first.replicated}
    return Manifest(
        run=first.run,
        step=first.step,
        end=first.end,
        attempt=first.attempt,
        nonce=first.nonce,
        world=first.world,
        parts=tuple(msgspec.structs.replace(part, tensors=part.tensors | held) for part in parts),
        part_digests=tuple(digests),
    )


def by_object(tree: Mapping[str, Any], tensors: Mapping[str, str]) -> dict[str, bytes]:
    """xxh3-128 of each attached object's state: its tree, and its tensors by name and digest."""
    hashers = {name: xxh3_128(plain.encode(one)) for name, one in tree.items()}
    for name in sorted(tensors):
        owner = name.partition(".")[0]
        if owner in hashers:
            hashers[owner].update(f"{name}\0{tensors[name]}\n".encode())
    return {name: hasher.digest() for name, hasher in hashers.items()}
