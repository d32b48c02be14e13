"""The attached objects: what each is, its state as a tree and tensors, and the way back.

Owns which objects can be attached and how each is restored; where bytes lie is `memory`'s. An
object that a snapshot cannot hold is refused by `Attached`, naming its key path.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from walrecover import plain
from walrecover.errors import Mismatch
from walrecover.plain import Unstorable
from walrecover.shards import TensorData
from walrecover.torch_adapter import memory
from walrecover.torch_adapter.leaves import StoredTensors, build_from, leaf_into

SHOWN = 5


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


class Attached:
    """The objects given to `attach`, by name. Raises TypeError now for what cannot be kept."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.objects: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        shared_parameters: set[int] = set()
        for name, given in objects.items():
            if given is None:
                continue
            value, replicated = peel(given)
            self.objects[name] = value
            self.kinds[name] = _kind(value, name)
            if replicated:
                shared_parameters |= {id(p) for p in value.parameters()}
        self._shared = shared_parameters
        self.capture()  # what cannot be stored is refused here, not at the first snapshot

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [v for v in self.objects.values() if isinstance(v, torch.optim.Optimizer)]

    def learning_rates(self) -> tuple[float, ...]:
        """Of every parameter group of every optimizer, without touching a device."""
        return tuple(
            group["lr"]
            for optimizer in self.optimizers()
            for group in optimizer.param_groups
            if isinstance(group.get("lr"), float)
        )

    def capture(self) -> State:
        """The state now. Tensors point into living memory: use them before training goes on."""
        tree: dict[str, Any] = {}
        tensors: dict[str, TensorData] = {}
        shared: set[str] = set()
        for name, value in self.objects.items():
            before = set(tensors)
            kind = self.kinds[name]
            tree[name] = {
                "kind": kind,
                "state": plain.to_tree(_state_of(value, kind), name, leaf_into(tensors)),
            }
            shared |= self._replicated(name, value, set(tensors) - before)
        return State(tree, tensors, frozenset(shared))

    def _replicated(self, name: str, value: Any, names: set[str]) -> set[str]:
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
        for name in self.objects.keys() & stored.tree.keys():
            if stored.tree[name].get("kind") != self.kinds[name]:
                raise Mismatch(
                    f"{name} is a {self.kinds[name]}, and was a {stored.tree[name].get('kind')} "
                    f"when the snapshot was taken"
                )
        if notes and strict:
            raise Mismatch(
                "; ".join(notes) + ". Attach the same names, or pass strict=False to attach()"
            )
        return notes

    def restore(self, stored: Stored, strict: bool) -> list[str]:
        """Give every object its state. Returns what did not fit (only where not `strict`).

        Raises Mismatch (the first five keys that differ) or Corrupt.
        """
        notes: list[str] = []
        for name, value in self.objects.items():
            if name not in stored.tree:
                continue
            state = plain.from_tree(stored.tree[name]["state"], build_from(stored.tensors))
            notes += _RESTORE[self.kinds[name]](value, state, name, strict)
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


def _state_of(value: Any, kind: str) -> Any:
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


def _raise_or_note(name: str, differences: list[str], strict: bool) -> list[str]:
    if differences and strict:
        more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise Mismatch(
            f"{name} does not fit the snapshot: {'; '.join(differences[:SHOWN])}{more}. Build "
            f"it as it was, or pass strict=False to attach() to restore what fits"
        )
    return [f"{name}: {difference}" for difference in differences]


def _restore_module(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    own = value.state_dict()
    differences = [f"{k} is only in the snapshot" for k in state if k not in own]
    differences += [f"{k} is only in the model" for k in own if k not in state]
    fitting = type(state)()
    for key, stored in state.items():
        if key not in own:
            continue
        mine = own[key]
        if isinstance(mine, torch.Tensor) and isinstance(stored, torch.Tensor):
            if mine.shape != stored.shape:
                differences.append(f"{key} is {_shape(mine)} here and {_shape(stored)} there")
                continue
            if mine.dtype != stored.dtype:
                differences.append(f"{key} is {mine.dtype} here and {stored.dtype} there")
                continue
        fitting[key] = stored
    notes = _raise_or_note(name, differences, strict)
    # Without its versions, modules would take the state for one that an old torch wrote.
    if isinstance(fitting, OrderedDict) and hasattr(own, "_metadata"):
        fitting._metadata = own._metadata  # type: ignore[attr-defined]
    value.load_state_dict(fitting, strict=False)
    return notes


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _restore_optimizer(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    here = [len(group["params"]) for group in value.param_groups]
    there = [len(group["params"]) for group in state["param_groups"]]
    differences = []
    if here != there:
        differences.append(f"parameter groups hold {here} parameters here and {there} there")
    else:
        parameters = [p for group in value.param_groups for p in group["params"]]
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        differences += _misshapen(state, numbers, parameters)
    notes = _raise_or_note(name, differences, strict)
    if notes:
        return notes
    value.load_state_dict(state)
    # load_state_dict casts float state to its parameter's type: fp32 moments of bf16 parameters
    # would come back rounded. Put back what was stored.
    for number, parameter in zip(numbers, parameters, strict=True):
        mine = value.state.get(parameter, {})
        for key, stored in state["state"].get(number, {}).items():
            if key in mine:
                mine[key] = _uncast(mine[key], stored)
    return []


def _uncast(loaded: Any, stored: Any) -> Any:
    if isinstance(loaded, torch.Tensor) and isinstance(stored, torch.Tensor):
        return loaded if loaded.dtype == stored.dtype else stored.to(loaded.device)
    if isinstance(loaded, list | tuple) and type(loaded) is type(stored):
        return type(loaded)(_uncast(*pair) for pair in zip(loaded, stored, strict=True))
    return loaded


def _misshapen(state: Any, numbers: list[int], parameters: list[torch.Tensor]) -> list[str]:
    """State that belongs to parameters of another shape: `load_state_dict` does not look."""
    found = []
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, stored in state["state"].get(number, {}).items():
            if key not in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"):
                continue
            if isinstance(stored, torch.Tensor) and stored.shape != parameter.shape:
                here, there = _shape(parameter), _shape(stored)
                found.append(f"state.{number}.{key} is {there}, its parameter {here}")
    return found


def _restore_stateful(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    try:
        value.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        return _raise_or_note(name, [f"its load_state_dict refused the state: {error}"], strict)
    return []


def _restore_tensor(value: torch.Tensor, state: Any, name: str, strict: bool) -> list[str]:
    if value.shape != state.shape or value.dtype != state.dtype:
        here = f"{_shape(value)} of {value.dtype}"
        return _raise_or_note(
            name, [f"{here} here, {_shape(state)} of {state.dtype} there"], strict
        )
    with torch.no_grad():
        value.copy_(state)
    return []


def _restore_array(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    if value.shape != state.shape or value.dtype != state.dtype:
        return _raise_or_note(
            name,
            [f"{value.shape} of {value.dtype} here, {state.shape} of {state.dtype} there"],
            strict,
        )
    value[...] = state
    return []


def _restore_generator(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    try:
        _set_generator(value, state)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        return _raise_or_note(name, [f"the generator refused the state: {error}"], strict)
    return []


def _set_generator(value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(value, random.Random):
        value.setstate(state)
    elif hasattr(value, "bit_generator"):
        value.bit_generator.state = state
    else:
        value.set_state(state)


def _restore_dict(value: dict[Any, Any], state: Any, name: str, strict: bool) -> list[str]:
    merged = {key: _merged(value.get(key), state[key], f"{name}[{key!r}]") for key in state}
    value.clear()  # so that the keys stand in the order in which they were stored
    value.update(merged)
    return []


def _merged(mine: Any, stored: Any, path: str) -> Any:
    """The stored value; a tensor, array or container that fits is filled in place, since the
    script may know it by another name."""
    if isinstance(mine, torch.Tensor) and isinstance(stored, torch.Tensor):
        fits = mine.shape == stored.shape and mine.dtype == stored.dtype
        if mine.requires_grad and not fits:
            raise Mismatch(f"{path} is {_shape(mine)} here and {_shape(stored)} in the snapshot")
        if fits and (mine.requires_grad or memory.owns_its_memory(mine)):
            with torch.no_grad():
                mine.copy_(stored)
            return mine
    elif type(mine) is not type(stored):
        return stored
    elif isinstance(mine, dict):
        _restore_dict(mine, stored, path, True)
        return mine
    elif isinstance(mine, list):
        mine[:] = stored
        return mine
    elif isinstance(mine, set):
        mine.clear()
        mine.update(stored)
        return mine
    elif isinstance(mine, deque) and mine.maxlen == stored.maxlen:
        mine.clear()
        mine.extend(stored)
        return mine
    elif memory.is_array_or_tensor(mine):
        fits = mine.shape == stored.shape and mine.dtype == stored.dtype
        if fits and memory.owns_its_memory(mine):
            mine[...] = stored
            return mine
    return stored


def _restore_namespace(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    return _restore_dict(vars(value), state, name, strict)


_RESTORE: dict[str, Callable[[Any, Any, str, bool], list[str]]] = {
    "module": _restore_module,
    "optimizer": _restore_optimizer,
    "stateful": _restore_stateful,
    "tensor": _restore_tensor,
    "array": _restore_array,
    "torch generator": _restore_generator,
    "python generator": _restore_generator,
    "numpy generator": _restore_generator,
    "dict": _restore_dict,
    "namespace": _restore_namespace,
}

__all__ = ["Attached", "State", "Stored", "Unstorable", "peel"]
