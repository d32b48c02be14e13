"""The attached objects: what each is, and its state as a tree and tensors.

Owns which objects can be attached; how each is restored is `fitting`'s, where bytes lie `memory`'s.
An object that a snapshot cannot hold is refused by `Attached`, naming its key path.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from walrecover import plain
from walrecover.errors import Mismatch
from walrecover.plain import Unstorable
from walrecover.shards import TensorData
from walrecover.torch_adapter import fitting, memory
from walrecover.torch_adapter.leaves import StoredTensors, build_from, leaf_into


class State(NamedTuple):
    """A captured state: the tree, its tensors by name, and which of them all ranks hold alike."""

    tree: dict[str, Any]
    tensors: dict[str, TensorData]
    shared: frozenset[str]


class Stored(NamedTuple):
    """A state read back: the tree and its tensors as (byte tensor, dtype, shape)."""

    tree: dict[str, Any]
    tensors: StoredTensors


def peel(value: Any) -> tuple[Any, bool]:
    """The object inside DDP and compile wrappers, and whether DDP was among them."""
    replicated = False
    while True:
        if isinstance(value, torch.nn.parallel.DistributedDataParallel):
            value, replicated = value.module, True
        elif isinstance(value, torch.nn.DataParallel):
            value = value.module
        elif isinstance(getattr(value, "_orig_mod", None), torch.nn.Module):
            value = value._orig_mod
        else:
            return value, replicated


def _ddp_of(value: Any) -> torch.nn.parallel.DistributedDataParallel | None:
    """The DDP that an object is, or that a compile wrapper holds."""
    while not isinstance(value, torch.nn.parallel.DistributedDataParallel):
        inner = getattr(value, "_orig_mod", None)
        if not isinstance(inner, torch.nn.Module):
            return None
        value = inner
    return value


class Attached:
    """The objects given to `attach`, by name. Raises TypeError now for what cannot be kept.

    `regroups`: DDP puts gradients into other buckets after its first step (`machine.inexact`).
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.objects: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self._led: set[str] = set()
        self.regroups = False
        shared_parameters: set[int] = set()
        for name, given in objects.items():
            if given is None:
                continue
            value, replicated = peel(given)
            self.objects[name] = value
            self.kinds[name] = _kind(value, name)
            if replicated:
                shared_parameters |= {id(p) for p in value.parameters()}
            ddp = _ddp_of(given)
            if ddp is not None and ddp.broadcast_buffers:  # rank 0's, before each forward
                self._led.add(name)
            if ddp is not None and (ddp.static_graph or not ddp.find_unused_parameters):
                self.regroups = True
        self._shared = shared_parameters
        self.optimizers = [v for n, v in self.objects.items() if self.kinds[n] == "optimizer"]
        self.capture(far=True)  # what cannot be stored is refused here, not at the first snapshot

    def learning_rates(self) -> tuple[float, ...]:
        """Of every parameter group of every optimizer, without touching a device."""
        return tuple(
            [
                group["lr"]
                for optimizer in self.optimizers
                for group in optimizer.param_groups
                if isinstance(group.get("lr"), float)
            ]
        )

    def capture(self, *, far: bool = False) -> State:
        """The state now. Tensors point into living memory: use them before training goes on. `far`:
        those of a device point there (`memory.Far`)."""
        tree: dict[str, Any] = {}
        tensors: dict[str, TensorData] = {}
        shared: set[str] = set()
        for name, value in self.objects.items():
            before = set(tensors)
            kind = self.kinds[name]
            tree[name] = {
                "kind": kind,
                "state": plain.to_tree(state_of(value, kind), name, leaf_into(tensors, far=far)),
            }
            if name in self._led:
                tree[name]["led"] = True
            shared |= self.replicated(name, value, set(tensors) - before)
        if any(isinstance(data.owner, memory.Far) for data in tensors.values()):
            tensors = self._steadied(tensors)
        return State(tree, tensors, frozenset(shared))

    def _steadied(self, tensors: dict[str, TensorData]) -> dict[str, TensorData]:
        """With those of a device marked that only a step of an optimizer changes."""
        steady = {
            part.data_ptr()
            for optimizer in self.optimizers
            for part in (
                *(parameter for group in optimizer.param_groups for parameter in group["params"]),
                *(v for s in optimizer.state.values() for v in s.values()),
            )
            if isinstance(part, torch.Tensor)
        }
        return {
            name: data._replace(owner=data.owner._replace(steady=True))
            if isinstance(data.owner, memory.Far) and data.address in steady
            else data
            for name, data in tensors.items()
        }

    def replicated(self, name: str, value: Any, names: set[str]) -> set[str]:
        if not self._shared:
            return set()
        if isinstance(value, torch.nn.Module):
            parameters = {
                f"{name}.{key}" for key, p in value.named_parameters() if id(p) in self._shared
            }
            return names & parameters
        if isinstance(value, torch.optim.Optimizer) and all(
            id(p) in self._shared for group in value.param_groups for p in group["params"]
        ):
            return {n for n in names if ".state." in n}
        return set()

    def check(self, stored: Stored, strict: bool) -> list[str]:
        """Names that only one side has. Raises Mismatch for them where `strict`."""
        missing = [n for n in stored.tree if n not in self.objects]
        new = [n for n in self.objects if n not in stored.tree]
        notes = [f"{n} is in the snapshot, but was not attached" for n in missing]
        notes += [f"{n} was attached, but the snapshot does not hold it" for n in new]
        for name in self._of_another_kind(stored):
            text = (
                f"{name} is a {self.kinds[name]}, and was a {stored.tree[name].get('kind')} "
                f"when the snapshot was taken"
            )
            if strict:
                raise Mismatch(text)
            notes.append(text)
        if notes and strict:
            raise Mismatch(
                "; ".join(notes) + ". Attach the same names, or pass strict=False to attach()"
            )
        return notes

    def _of_another_kind(self, stored: Stored) -> list[str]:
        both = [name for name in self.objects if name in stored.tree]
        return [name for name in both if stored.tree[name].get("kind") != self.kinds[name]]

    def restore(self, stored: Stored, strict: bool) -> list[str]:
        """Give every object its state. Returns what did not fit (only where not `strict`), a line
        for each object.

        Raises Mismatch (renames, and the first five keys that differ) or Corrupt.
        """
        notes: list[str] = []
        unlike = self._of_another_kind(stored)
        for name, value in self.objects.items():
            if name not in stored.tree or name in unlike:
                continue
            kind = self.kinds[name]
            build = build_from(stored.tensors, borrowed=kind in fitting.BORROWING)
            state = plain.from_tree(stored.tree[name]["state"], build)
            notes += fitting.RESTORE[kind](value, state, name, strict)
        return notes


def _kind(value: Any, name: str) -> str:
    if isinstance(value, torch.nn.Module):
        return "module"
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, torch.Generator):
        return "torch generator"
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return "python generator"
    numpy = memory.numpy_or_none()
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return "array"
        if isinstance(value, numpy.random.Generator | numpy.random.RandomState):
            return "numpy generator"
    if callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    ):
        return "stateful"
    if isinstance(value, dict):
        return "dict"
    if isinstance(value, types.SimpleNamespace | argparse.Namespace) or (
        dataclasses.is_dataclass(value)
        and hasattr(value, "__dict__")
        and not isinstance(value, type)
    ):
        return "namespace"
    if isinstance(value, bool | int | float | str | bytes | tuple | list):
        raise TypeError(
            f"{name} is a {type(value).__name__}, which cannot be filled in place: "
            f"put it into a dict, {name}={{'value': …}}, and use it from there"
        )
    raise TypeError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which a snapshot cannot "
        f"hold: attach objects with state_dict() and load_state_dict(), tensors, generators, or "
        f"dicts of plain values"
    )


def state_of(value: Any, kind: str) -> Any:
    if kind in ("module", "optimizer", "stateful"):
        return value.state_dict()
    if kind == "torch generator":
        return memory.bytes_of(value.get_state())
    if kind == "python generator":
        return value.getstate()
    if kind == "numpy generator":
        return _numpy_state(value)
    if kind == "namespace":
        return dict(vars(value))
    return value


def _numpy_state(value: Any) -> Any:
    if hasattr(value, "bit_generator"):
        return value.bit_generator.state
    return value.get_state(legacy=False)


__all__ = ["Attached", "State", "Stored", "Unstorable", "peel"]
