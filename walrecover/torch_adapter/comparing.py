"""`python -m walrecover.torch_adapter.comparing`: what `walrecover diff` needs torch for.

Owns a child process that describes checkpoint files and the model in a script, and measures by how
much tensors differ. It answers one request after the other, on what were its stdin and stdout; what
the user's script prints goes to stderr, and its stdin is empty. Files are read with torch's
`weights_only`; nothing of them is run. A script is: up to the moment that was asked for.

Requests and answers are msgpack, each behind its length in eight bytes.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch

from walrecover import plain, shards
from walrecover.errors import BadInput, WalrecoverError
from walrecover.manifest import FileAt, TensorAt
from walrecover.plain import Unstorable
from walrecover.processes import die_with_parent
from walrecover.torch_adapter import memory, numbers
from walrecover.torch_adapter.leaves import leaf_into
from walrecover.torch_adapter.objects import Attached

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_COUNT = ".step"


class Channel:
    """The two pipes to the parent, moved away from where scripts read and print."""

    def __init__(self) -> None:
        self._requests, self._answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)

    def requests(self) -> Iterator[Any]:
        while length := self._requests.read(8):
            yield msgspec.msgpack.decode(self._requests.read(int.from_bytes(length, "little")))

    def answer(self, body: Any) -> None:
        data = msgspec.msgpack.encode(body)
        self._answers.write(len(data).to_bytes(8, "little") + data)
        self._answers.flush()


class Server:
    """What is held of each side ("a", "b") between the requests."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._held: dict[str, Mapping[str, Any]] = {}

    def serve(self) -> None:
        for request in self._channel.requests():
            kind, *arguments = request
            try:
                if kind == "file":
                    self._channel.answer(self._file(*arguments))
                elif kind == "numbers":
                    self._channel.answer(self._numbers(*arguments))
                else:
                    self._script(*arguments)
            except (WalrecoverError, Unstorable) as error:
                self._channel.answer({"error": str(error)})

    # -- describing ---------------------------------------------------------------------------

    def _file(self, side: str, path: str) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        tree = plain.to_tree(_load(path), "", _leaf_or_opaque(leaf_into(tensors)))
        return self._described(side, {"tree": tree}, tensors)

    def _objects(self, side: str, objects: Mapping[str, Any]) -> dict[str, Any]:
        try:
            state = Attached(objects).capture()
        except TypeError as error:
            raise BadInput(str(error)) from None
        return self._described(side, {"objects": state.tree}, state.tensors)

    def _described(
        self, side: str, body: dict[str, Any], tensors: Mapping[str, Any]
    ) -> dict[str, Any]:
        self._held[side] = tensors
        digests = shards.digests(tensors)
        described = {
            name: [data.dtype, list(data.shape), digests[name], _number(name, data)]
            for name, data in tensors.items()
        }
        return body | {"tensors": described}

    # -- the user's own code --------------------------------------------------------------------

    def _script(self, side: str, where: str, name: str, arguments: list[str]) -> None:
        """Does not return where the script was followed to `attach`: it is still on the stack."""
        if not name:
            self._follow(side, where, arguments)
        self._channel.answer(self._objects(side, _as_objects(_made(where, name))))

    def _follow(self, side: str, where: str, arguments: list[str]) -> NoReturn:
        def attach(**given: Any) -> NoReturn:
            options = ("name", "dir", "every", "resume", "strict")
            objects = {key: value for key, value in given.items() if key not in options}
            try:
                self._channel.answer(self._objects(side, objects))
            except (WalrecoverError, Unstorable) as error:
                self._channel.answer({"error": str(error)})
            self.serve()
            os._exit(0)  # nothing of the script happens after this, its handlers included

        _put_in_place_of_attach(attach)
        sys.argv = [where, *arguments]
        sys.path.insert(0, str(Path(where).absolute().parent))
        _guarded(where, lambda: runpy.run_path(where, run_name="__main__"))
        raise BadInput(
            f"{where} ended without calling walrecover.attach(): name what builds the model, as in "
            f"{where}:build_model"
        )

    # -- measuring ------------------------------------------------------------------------------

    def _numbers(self, pairs: list[tuple[Any, Any]]) -> list[Any]:
        return [numbers.difference(self._tensor(a), self._tensor(b)) for a, b in pairs]

    def _tensor(self, place: list[Any]) -> torch.Tensor:
        kind, *rest = place
        if kind == "held":
            side, name = rest
            data = self._held[side][name]
            tensor, view = memory.empty(data.nbytes)
            view[:] = data.view()
            return memory.as_tensor(tensor, data.dtype, data.shape)
        if kind == "shard":
            return _of_shard(*rest)
        path, offset, nbytes, dtype, shape = rest
        tensor, view = memory.empty(nbytes)
        with open(path, "rb") as file:
            file.seek(offset)
            if file.readinto(view) != nbytes:
                raise BadInput(f"{path}: it became shorter while it was read")
        return memory.as_tensor(tensor, dtype, tuple(shape))


def _of_shard(snapshots: str, file: Any, at: Any) -> torch.Tensor:
    """A tensor of a snapshot, its digest checked."""
    where = msgspec.convert(at, TensorAt)
    with shards.Shard(Path(snapshots), where.file, msgspec.convert(file, FileAt)) as shard:
        tensor, view = memory.empty(shard.size_of(where))
        shard.read(where.key, where, view)
    return memory.as_tensor(tensor, where.dtype, where.shape)


def _load(path: str) -> Any:
    """What torch.save wrote, as far as reading it runs no code. Raises BadInput."""
    try:
        return torch.load(  # noqa: TID251
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),  # two large files need not both fit in memory
        )
    except Exception as error:  # torch raises whatever its readers meet in a broken file
        found = _GLOBAL.search(str(error))
        if found:
            raise BadInput(
                f"{path} holds a {found[1]}, and reading that would run code: save tensors and "
                f"plain values alone (state_dicts), or convert the file where you trust it"
            ) from None
        reason = str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise BadInput(f"{path} cannot be read as a checkpoint of torch: {reason}") from None


def _leaf_or_opaque(leaf: plain.Leaf) -> plain.Leaf:
    """What a snapshot could not hold is compared by its type."""

    def leaf_or_opaque(value: Any, path: str) -> tuple[str, Any]:
        try:
            return leaf(value, path)
        except Unstorable:
            kind = type(value)
            return "opaque", f"{kind.__module__}.{kind.__qualname__}"

    return leaf_or_opaque


def _number(name: str, data: Any) -> float | int | None:
    """The value of a step count."""
    if not name.endswith(_COUNT) or data.nbytes > 8:
        return None
    tensor, view = memory.empty(data.nbytes)
    view[:] = data.view()
    found = memory.as_tensor(tensor, data.dtype, data.shape)
    return found.item() if found.numel() == 1 else None


def _made(where: str, name: str) -> Any:
    """The object of that name, built if it is a function."""

    def attach(**given: Any) -> NoReturn:
        raise BadInput(f"{where} calls walrecover.attach() as it is imported: give {where} alone")

    _put_in_place_of_attach(attach)
    sys.path.insert(0, str(Path(where).absolute().parent) if where.endswith(".py") else os.getcwd())
    sys.argv = [where]

    def make() -> Any:
        if where.endswith(".py"):
            found: Any = runpy.run_path(where, run_name="walrecover_diff")
            first, *rest = name.split(".")
            if first not in found:
                raise BadInput(f"{where} has no {first}")
            value = found[first]
        else:
            value, rest = importlib.import_module(where), name.split(".")
        for part in rest:
            if not hasattr(value, part):
                raise BadInput(f"{where} has no {name}")
            value = getattr(value, part)
        is_built = isinstance(value, torch.nn.Module | Mapping) or not callable(value)
        return value if is_built else value()

    return _guarded(f"{where}:{name}", make)


def _put_in_place_of_attach(attach: Callable[..., NoReturn]) -> None:
    """Wherever a script has it from, so that nothing is written to any run."""
    import walrecover
    from walrecover import session
    from walrecover.session import attaching

    for module in (walrecover, session, attaching):
        module.__dict__["attach"] = attach


def _guarded(label: str, work: Callable[[], Any]) -> Any:
    """What the user's code raises, as one sentence that names its place. Raises BadInput."""
    try:
        return work()
    except WalrecoverError:
        raise
    except SystemExit as end:
        raise BadInput(
            f"{label} ended itself with {end.code!r} before the model was there"
        ) from end
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if os.path.isfile(f.filename) and f.filename != __file__]
        where = f", {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise BadInput(f"{label} raised {type(error).__name__}: {error}{where}") from error


def _as_objects(value: Any) -> Mapping[str, Any]:
    if isinstance(value, torch.nn.Module):
        return {"model": value}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise BadInput(
        f"a {type(value).__name__} is neither a model nor a dict of objects as attach() takes them"
    )


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    Server(Channel()).serve()


if __name__ == "__main__":
    main()
