"""A and B of `walrecover diff`: what each argument names, and its description.

Owns the forms of an argument, and reading snapshots and safetensors files; what needs torch is
asked of the child process.
"""

from __future__ import annotations

import math
import re
import shlex
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from walrecover import entries as model
from walrecover import manifest as votes
from walrecover import plain, shards, snapshot, tensorfile
from walrecover.cli.comparing import Child, has_torch
from walrecover.cli.options import resolve
from walrecover.difference import OWN, State, Tensor, leaves_of
from walrecover.errors import BadInput, Corrupt, UnsupportedVersion, WalrecoverError
from walrecover.files import read_regular
from walrecover.manifest import Manifest, Part
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
_NAMED = re.compile(r"([\w.]+):([A-Za-z_][\w.]*)")
_NUMBERS = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}


class Side(NamedTuple):
    """One side. `place`: where the bytes of a rank's tensor lie, as the child is told."""

    what: str
    state: State
    place: Callable[[int, Tensor], list[Any]]
    notes: tuple[str, ...] = ()


class Script(NamedTuple):
    """`name` "": what the script attaches."""

    where: str
    name: str = ""
    arguments: tuple[str, ...] = ()


def script_of(text: str) -> Script | None:
    """The script that an argument names, if it does."""
    path = Path(text)
    if path.exists():
        return Script(text) if path.suffix == ".py" and path.is_file() else None
    where, _, name = text.rpartition(":")
    if where.endswith(".py") and re.fullmatch(r"[A-Za-z_][\w.]*", name):
        if not Path(where).is_file():
            raise BadInput(f"{where}: no such script")
        return Script(where, name)
    words = shlex.split(text)
    if words and words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise BadInput(f"{words[0]}: no such script")
        return Script(words[0], "", tuple(words[1:]))
    if match := _NAMED.fullmatch(text):
        return Script(match[1], match[2])
    return None


def side_of(letter: str, text: str, directory: str | None, child: Child) -> Side:
    """Raises BadInput for what cannot be read, saying what was found and what would do."""
    try:
        if found := script_of(text):
            return _script(letter, text, found, child)
        path = Path(text)
        if path.is_dir():
            return _folder(path.absolute())
        if path.is_file():
            return _file(letter, path, child)
        if path.suffix in (*TORCH_FILES, ".safetensors") or "/" in text:
            raise BadInput(f"{text}: no such file or folder")
        return _of_run(text, directory)
    except (Corrupt, UnsupportedVersion) as error:
        raise BadInput(f"{letter} cannot be read: {error}") from None


# --- snapshots ----------------------------------------------------------------------------------


def _of_run(text: str, directory: str | None) -> Side:
    name, _, at = text.partition("@")
    if at and not at.isdigit():
        raise BadInput(f"{text}: after the @ comes a step, as in {name}@1200")
    run = resolve(name or None, directory)
    kept = model.candidates(Sequence(run.sequence).read())
    found = [c.snapshot for c in kept if not at or c.snapshot.step <= int(at)]
    if not found:
        steps = ", ".join(str(c.snapshot.step) for c in reversed(kept)) or "none"
        raise BadInput(f"run {run.name} has no snapshot at or before {text} (it has: {steps})")
    return _snapshot(run.snapshots, snapshot.load_manifest(run, found[0]), ())


def _folder(path: Path) -> Side:
    if not (path / "manifest.json").is_file():
        raise BadInput(
            f"{path} holds no manifest.json: give a folder below snapshots/, a file, or a run's "
            f"name with --dir"
        )
    data = read_regular(path.parent, f"{path.name}/manifest.json", votes.MAX_MANIFEST_BYTES)
    found = votes.decode_manifest(data)
    if found.name != path.name:
        raise BadInput(f"{path} holds the manifest of {found.name}: give the folder its own name")
    notes: tuple[str, ...] = ()
    if votes.digest_of(data) not in _committed(path):
        notes = (f"no sequence commits {path}: nothing proves that it is what was saved",)
    return _snapshot(path.parent, found, notes)


def _committed(path: Path) -> set[str]:
    """The manifests that the sequence beside a snapshot's folder commits."""
    run = RunDir(path.parents[3], path.parents[1].name) if len(path.parents) > 3 else None
    try:
        entries = Sequence(run.sequence).read() if run and run.path == path.parents[1] else []
    except WalrecoverError:
        return set()
    return {commit.snapshot.manifest for commit in model.commits(entries)}


def _snapshot(snapshots: Path, manifest: Manifest, notes: tuple[str, ...]) -> Side:
    files = manifest.files()
    ranks: list[dict[str, Any]] = []
    kinds: dict[str, str] = {}
    for part in manifest.parts:
        own = f"{manifest.name}/rank-{part.rank:05d}.msgpack"
        if own not in part.files:
            raise Corrupt(f"{manifest.name}: the vote of rank {part.rank} names no {own}")
        rest = plain.decode(shards.read_plain(snapshots, own, part.files[own]))
        try:
            tree = rest["state"]
            kinds = kinds or {name: item["kind"] for name, item in tree["objects"].items()}
            ranks.append(_leaves(tree, _described(snapshots, manifest, part)))
        except (KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"{own}: no {error} in it") from None

    def place(rank: int, tensor: Tensor) -> list[Any]:
        at = manifest.parts[rank].tensors[tensor.name]
        return ["shard", str(snapshots), *map(msgspec.to_builtins, (files[at.file], at))]

    what = "the end of " if manifest.end else ""
    label = f"run {manifest.run}, {what}step {manifest.step} of attempt {manifest.attempt}"
    return Side("snapshot", State(label, tuple(ranks), kinds, own=True), place, notes)


def _described(snapshots: Path, manifest: Manifest, part: Part) -> dict[str, Tensor]:
    """Each tensor of a rank; step counts with their values, each different one read once."""
    known: dict[str, float | int | None] = {}
    found = {}
    for name, at in part.tensors.items():
        number = None
        if name.endswith(".step") and at.dtype in _NUMBERS and math.prod(at.shape) == 1:
            if at.digest not in known:
                with shards.Shard(snapshots, at.file, manifest.files()[at.file]) as shard:
                    raw = bytearray(shard.size_of(at))
                    shard.read(name, at, raw)
                known[at.digest] = _number(at.dtype, bytes(raw))
            number = known[at.digest]
        found[name] = Tensor(at.dtype, at.shape, at.digest, number, name)
    return found


def _number(dtype: str, raw: bytes) -> float | int | None:
    form = _NUMBERS[dtype]
    if len(raw) != struct.calcsize(form):
        return None
    found: float | int = struct.unpack(form, raw)[0]
    return found


def _leaves(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The leaves of a snapshot's `state`, or of the child's answer."""

    def build(kind: str, payload: Any) -> Any:
        if kind in ("tensor", "array"):
            return tensors[payload[0] if kind == "tensor" else payload]
        return (kind, *payload) if isinstance(payload, list) else (kind, payload)

    objects = {
        name: plain.from_tree(item["state"], build) for name, item in tree["objects"].items()
    }
    own = {name: plain.from_tree(tree[name], build) for name in OWN if name in tree}
    return leaves_of(objects | own)


# --- files and scripts --------------------------------------------------------------------------


def _file(letter: str, path: Path, child: Child) -> Side:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in TORCH_FILES and not _is_zip(path):
        raise BadInput(
            f"{path} is neither a safetensors file nor one of torch ({', '.join(TORCH_FILES)})"
        )
    _require_torch(path)
    answer = child.ask("file", letter, str(path))
    tensors = _tensors(answer)
    tree = {"objects": {"": {"state": answer["tree"]}}}
    leaves = {name.removeprefix("."): leaf for name, leaf in _leaves(tree, tensors).items()}
    return Side("torch file", State(str(path), (leaves,)), _held(letter))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _safetensors(path: Path) -> Side:
    places = tensorfile.places(path)
    leaves = {
        name: Tensor(at.dtype, at.shape, tensorfile.digest(path, at), _count(path, name, at), name)
        for name, at in places.items()
    }

    def place(rank: int, tensor: Tensor) -> list[Any]:
        at = places[tensor.name]
        return ["file", str(path), at.offset, at.nbytes, at.dtype, list(at.shape)]

    return Side("safetensors", State(str(path), (leaves,), tensors_only=True), place)


def _count(path: Path, name: str, at: tensorfile.Place) -> float | int | None:
    if not name.endswith(".step") or at.dtype not in _NUMBERS or math.prod(at.shape) != 1:
        return None
    return _number(at.dtype, b"".join(tensorfile.chunks(path, at)))


def _script(letter: str, text: str, script: Script, child: Child) -> Side:
    _require_torch(text)
    answer = child.ask("script", letter, script.where, script.name, list(script.arguments))
    leaves = _leaves(answer, _tensors(answer))
    kinds = {name: item["kind"] for name, item in answer["objects"].items()}
    note = f"{letter} is what {text} built: its code was run"
    return Side(
        "script",
        State(text, (leaves,), kinds, form_only=True, part=bool(script.name)),
        _held(letter),
        (note,),
    )


def _require_torch(what: Any) -> None:
    if not has_torch():
        raise BadInput(f"{what} can only be read with torch, which this Python does not have")


def _tensors(answer: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: Tensor(dtype, tuple(shape), digest, number, name)
        for name, (dtype, shape, digest, number) in answer["tensors"].items()
    }


def _held(letter: str) -> Callable[[int, Tensor], list[Any]]:
    return lambda rank, tensor: ["held", letter, tensor.name]
