"""The state of the last boundary, kept so that it can still be saved when the next step fails.

Owns what is copied at each boundary, and the answer to whether the rest is still what it was then.
A failed step has moved buffers, generators, counters and schedules: those come from copies.
Parameters and the optimizers' state are too large to be copied; they are whole exactly while no
optimizer has stepped, which torch's global hook tells. What belongs to no optimizer and is too
large to be copied counts as unmoved only where its bytes are those of the last snapshot.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from walrecover import plain
from walrecover.errors import WalrecoverError
from walrecover.manifest import digest_of
from walrecover.shards import TensorData
from walrecover.torch_adapter.copies import Copies, TooMuch
from walrecover.torch_adapter.leaves import leaf_into
from walrecover.torch_adapter.objects import Attached, State, state_of

SAMPLE_BYTES = 16
_version = operator.attrgetter("_version")
_address = torch.Tensor.data_ptr


class NotWhole(WalrecoverError):
    """The state of the last boundary is not there any more; the message says what has moved."""


class Keeper:
    """What is kept of the attached objects. `refusal`: why nothing can be, or ""."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self._modules = {
            name: list(value.named_modules())
            for name, value in attached.objects.items()
            if attached.kinds[name] == "module"
        }
        self._stepped = ""
        self._kept: dict[str, Any] | None = None
        self._copies = Copies()
        self._owned = Owned(attached.optimizers())
        self.refusal = _unkeepable(attached)
        self._hook = register_optimizer_step_pre_hook(self._note)

    def close(self) -> None:
        self._hook.remove()
        self._kept = None

    def keep(self) -> None:
        """At a boundary: copy what is small. Raises TooMuch, once: from then on nothing is kept."""
        self._kept = None
        if self.refusal:
            return
        copies = Copies(self._copies)
        try:
            kept = {n: self._keep(n, value, copies) for n, value in self._attached.objects.items()}
        except TooMuch as error:
            self.refusal = str(error)
            raise
        copies.finish()
        self._copies, self._kept, self._stepped = copies, kept, ""
        self._owned.note()

    def _keep(self, name: str, value: Any, copies: Copies) -> Any:
        kind = self._attached.kinds[name]
        if kind == "module":
            return _keep_module(self._modules[name], name, copies)
        if kind == "optimizer":
            path = f"{name}.param_groups"
            return [_keep_group(group, path, copies) for group in value.param_groups]
        if kind == "stateful" and _is_scaler(value):
            moving = (value._scale, value._growth_tracker)
            return [None if tensor is None else copies.tensor(tensor) for tensor in moving]
        return copies.of(state_of(value, kind), name)

    def state(self, known: Mapping[str, str]) -> State:
        """The state as it was at the last boundary. `known`: the digests of the tensors of the
        last snapshot. Raises NotWhole."""
        if self.refusal:
            raise NotWhole(self.refusal)
        if self._stepped:
            raise NotWhole(f"{self._stepped}.step() had begun")
        if self._kept is None:
            raise NotWhole("no state was kept")
        if self._owned.moved():
            raise NotWhole("parameters were changed by something that is not an optimizer's step")
        owned = set(map(id, self._owned.parameters()))
        for name, modules in self._modules.items():
            if [*map(id, self._attached.objects[name].modules())] != [id(m) for _, m in modules]:
                raise NotWhole(f"{name} has other modules")
        tree: dict[str, Any] = {}
        tensors: dict[str, TensorData] = {}
        shared: set[str] = set()
        for name, value in self._attached.objects.items():
            kind = self._attached.kinds[name]
            mine: dict[str, TensorData] = {}
            state = _rebuild(value, kind, self._kept[name], name, owned)
            tree[name] = {"kind": kind, "state": plain.to_tree(state, name, leaf_into(mine))}
            if kind != "optimizer":
                _require_unmoved(mine, owned | self._copies.ids, known)
            shared |= self._attached.replicated(name, value, set(mine))
            tensors |= mine
        return State(tree, tensors, frozenset(shared))

    def _note(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        self._stepped = self._stepped or type(optimizer).__name__


def _unkeepable(attached: Attached) -> str:
    """Objects whose state is made by code that is not known to leave tensors where they are."""
    for name, value in attached.objects.items():
        kind = attached.kinds[name]
        if kind == "optimizer":
            if type(value).state_dict is not torch.optim.Optimizer.state_dict or _hooked(
                value, "_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks"
            ):
                return f"{name} makes its state_dict by code of its own"
        elif kind == "module":
            for path, module in value.named_modules(prefix=name):
                own = type(module)
                if (
                    own.state_dict is not torch.nn.Module.state_dict
                    or own._save_to_state_dict is not torch.nn.Module._save_to_state_dict
                    or _hooked(module, "_state_dict_hooks", "_state_dict_pre_hooks")
                ):
                    return f"{path} makes its state_dict by code of its own"
    return ""


def _hooked(value: Any, *names: str) -> bool:
    return any(getattr(value, name, None) for name in names)


# -- at the boundary ------------------------------------------------------------------------------


def _keep_module(
    modules: Sequence[tuple[str, torch.nn.Module]], name: str, copies: Copies
) -> dict[str, Any]:
    """Persistent buffers and extra state, by their keys in the state_dict."""
    kept: dict[str, Any] = {}
    for path, module in modules:
        prefix = f"{path}." if path else ""
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                kept[prefix + key] = copies.tensor(buffer)
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            key = f"{prefix}_extra_state"
            kept[key] = copies.of(module.get_extra_state(), f"{name}.{key}")
    return kept


def _keep_group(group: dict[str, Any], path: str, copies: Copies) -> dict[str, Any]:
    return dict(copies.of({key: v for key, v in group.items() if key != "params"}, path))


def _is_scaler(value: Any) -> bool:
    """Its `state_dict` waits for the device."""
    return isinstance(value, torch.amp.GradScaler)


class Owned:
    """The parameters that optimizers own, and whether something has gone by their steps.

    An optimizer's step is told by torch's hook. This sees operations that count versions, tensors
    that were exchanged, and, on the host, writes past the counters (`.data`, fused kernels), by a
    few bytes from the middle of each.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._addresses: tuple[int, ...] = ()
        self._middles: list[Any] = []
        self._seen: Any = None

    def parameters(self) -> list[torch.Tensor]:
        return [p for o in self._optimizers for group in o.param_groups for p in group["params"]]

    def note(self) -> None:
        self._seen = self._look()

    def moved(self) -> bool:
        return bool(self._seen != self._look())

    def _look(self) -> tuple[Any, ...]:
        parameters = self.parameters()
        addresses = tuple(map(_address, parameters))
        if addresses != self._addresses:
            self._addresses, self._middles = addresses, _middles(parameters)
        return sum(map(_version, parameters)), addresses, [m.raw for m in self._middles]


def _middles(parameters: Sequence[torch.Tensor]) -> list[Any]:
    return [
        (ctypes.c_char * SAMPLE_BYTES).from_address(p.data_ptr() + (p.nbytes - SAMPLE_BYTES) // 2)
        for p in parameters
        if p.is_cpu and p.nbytes >= SAMPLE_BYTES and p.is_contiguous()
    ]


# -- on the way out -------------------------------------------------------------------------------


def _rebuild(value: Any, kind: str, kept: Any, name: str, owned: set[int]) -> Any:
    """What `state_of` would have given at the boundary."""
    if kind == "module":
        return _rebuild_module(value, kept, name, owned)
    if kind == "optimizer":
        return _rebuild_optimizer(value, kept, name)
    if kind == "stateful" and _is_scaler(value):
        return _rebuild_scaler(value, kept)
    return kept


def _rebuild_module(value: Any, kept: dict[str, Any], name: str, owned: set[int]) -> Any:
    for key, parameter in value.named_parameters():
        if parameter.requires_grad and id(parameter) not in owned:
            raise NotWhole(f"{name}.{key} is trained and belongs to no attached optimizer")
    state = value.state_dict(keep_vars=True)
    for key, living in state.items():
        if key in kept:
            state[key] = kept[key]
        elif not isinstance(living, torch.nn.Parameter):
            raise NotWhole(f"{name}.{key} is new")
    if gone := kept.keys() - state.keys():
        raise NotWhole(f"{name}.{min(gone)} is gone")
    return state


def _rebuild_optimizer(value: Any, kept: list[dict[str, Any]], name: str) -> Any:
    state = value.state_dict()
    if len(state["param_groups"]) != len(kept):
        raise NotWhole(f"{name} has other parameter groups")
    state["param_groups"] = [
        group | {"params": living["params"]}
        for group, living in zip(kept, state["param_groups"], strict=True)
    ]
    return state


def _rebuild_scaler(value: Any, kept: list[Any]) -> Any:
    state = value.state_dict()
    if state:
        scale, tracker = kept
        state["scale"] = value._init_scale if scale is None else float(scale)
        state["_growth_tracker"] = value._init_growth_tracker if tracker is None else int(tracker)
    return state


def _require_unmoved(
    tensors: Mapping[str, TensorData], trusted: set[int], known: Mapping[str, str]
) -> None:
    for name, data in tensors.items():
        if not trusted.isdisjoint(map(id, _sources(data.owner))):
            continue
        if name not in known:
            raise NotWhole(
                f"{name} is too large to be copied at each step, and no snapshot holds it yet"
            )
        if digest_of(data.view()) != known[name]:
            raise NotWhole(f"{name} moves, and is too large to be copied at each step")


def _sources(owner: Any) -> tuple[Any, ...]:
    """The tensor or array whose bytes they are."""
    return owner if isinstance(owner, tuple) else (owner, owner.base)
