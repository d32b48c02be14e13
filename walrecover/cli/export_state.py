"""`replay --into`: a snapshot rebuilt as two files that other tools open.

Owns the shape of state.safetensors and state.json. The directory appears whole or not at all.
"""

from __future__ import annotations

import ctypes
import secrets
from pathlib import Path
from typing import Any

import msgspec

from walrecover import plain, shards, snapshot
from walrecover.entries import SnapshotRef
from walrecover.errors import BadInput
from walrecover.files import storage, sync_directory, sync_file, write_durably
from walrecover.manifest import Manifest
from walrecover.rundir import RunDir
from walrecover.shards import TensorData


def write_state(run: RunDir, ref: SnapshotRef, into: Path) -> Path:
    """Write the snapshot's state into a directory that is empty or not there yet.

    Tensors of rank 0 keep their names; what another rank holds of its own is prefixed `rank1.`.
    Raises BadInput, Corrupt, StorageFailed.
    """
    into = into.absolute()
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise BadInput(f"{into} is not empty: give a directory that is, or a new one")
    manifest = snapshot.load_manifest(run, ref)
    with storage(f"cannot write {into}"):
        into.parent.mkdir(parents=True, exist_ok=True)
        building = into.parent / f".{into.name}.{secrets.token_hex(4)}"
        building.mkdir()
        try:
            _write_tensors(run, manifest, building / "state.safetensors")
            write_durably(building / "state.json", _plain_json(run, manifest))
            sync_directory(building)
            building.rename(into)
            sync_directory(into.parent)
        finally:
            if building.exists():
                for file in building.iterdir():
                    file.unlink()
                building.rmdir()
    return into


def _write_tensors(run: RunDir, manifest: Manifest, path: Path) -> None:
    from safetensors import serialize_file

    kept: dict[str, TensorData] = {}
    files = manifest.files()
    opened: dict[str, shards.Shard] = {}
    try:
        for part in manifest.parts:
            for name, at in part.tensors.items():
                if part.rank and name in part.replicated:
                    continue
                if at.file not in opened:
                    opened[at.file] = shards.Shard(run.snapshots, at.file, files[at.file])
                buffer = bytearray(opened[at.file].size_of(at))
                opened[at.file].read(name, at, buffer)
                raw = (ctypes.c_char * len(buffer)).from_buffer(buffer)
                label = f"rank{part.rank}.{name}" if part.rank else name
                kept[label] = TensorData(
                    at.dtype, at.shape, ctypes.addressof(raw), len(buffer), raw
                )
    finally:
        for shard in opened.values():
            shard.close()
    serialize_file({name: shards.spec_of(data) for name, data in kept.items()}, path)
    path.chmod(0o600)
    sync_file(path)


def _plain_json(run: RunDir, manifest: Manifest) -> bytes:
    """Everything that is not a tensor, in `plain`'s wire form; bytes are base64."""
    files = manifest.files()
    ranks: list[Any] = []
    for part in manifest.parts:
        own = f"{manifest.name}/rank-{part.rank:05d}.msgpack"
        ranks.append(plain.decode(shards.read_plain(run.snapshots, own, files[own]))["state"])
    body = {
        "version": 1,
        "run": manifest.run,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "world": manifest.world,
        "ranks": ranks,
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=1) + b"\n"
