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
from collections.abc import Callable, Mapping, Sequence
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
_TORCHS_OWN = (torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
_version = operator.attrgetter("_version")
_address = torch.Tensor.data_ptr


class NotWhole(WalrecoverError):
    """The state of the last boundary is not there any more; the message says what has moved."""


class Keeper:
    """What is kept of the attached objects. `refusal`: why nothing can be, or "". `asks`: some are
    asked for their state, by code of their own."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self._modules = {
            name: Moving(value, name)
            for name, value in attached.objects.items()
            if attached.kinds[name] == "module"
        }
        self._stepped = ""
        self._kept: dict[str, Any] | None = None
        self._copies = Copies()
        self._owned = Owned(attached.optimizers)
        self._hows = [(n, self._how(n, v, attached.kinds[n])) for n, v in attached.objects.items()]
        self.refusal = _unkeepable(attached)
        self.asks = any(
            kind == "stateful" and not isinstance(attached.objects[name], _TORCHS_OWN)
            for name, kind in attached.kinds.items()
        ) or any(moving.asks for moving in self._modules.values())
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
            kept = {name: how(copies) for name, how in self._hows}
        except TooMuch as error:
            self.refusal = str(error)
            raise
        copies.finish()
        self._copies, self._kept, self._stepped = copies, kept, ""
        self._owned.note()

    def _how(self, name: str, value: Any, kind: str) -> Callable[[Copies], Any]:
        """What copies an object at a boundary."""
        if kind == "module":
            return self._modules[name].keep
        if kind == "optimizer":
            return lambda copies: [_keep_group(group, name, copies) for group in value.param_groups]
        if kind == "stateful" and isinstance(value, torch.amp.GradScaler):
            return lambda copies: _keep_scaler(value, copies)
        return lambda copies: copies.of(state_of(value, kind), name)

    def state(self, known: Mapping[str, str]) -> State:
        """The state as it was at the last boundary. `known`: the digests of the tensors of the
        last snapshot. Raises NotWhole."""
        if self.refusal:
            raise NotWhole(self.refusal)
        if self._stepped:
            raise NotWhole(f"{self._stepped}.step() had begun")
        if self._kept is None:
            raise NotWhole("no state was kept")
        if moved := self._owned.moved():
            raise NotWhole(f"{moved} changed by something that is not an optimizer's step")
        owned = set(map(id, self._owned.parameters()))
        for name, moving in self._modules.items():
            now = self._attached.objects[name].modules()
            if [*map(id, now)] != [*map(id, moving.modules)]:
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


class Moving:
    """What a module has besides its parameters: persistent buffers and extra state, by their keys
    in the state_dict."""

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        self.modules = list(module.modules())
        self._name = name
        self._buffers: list[tuple[str, dict[str, torch.Tensor | None], str]] = []
        self._extra: list[tuple[str, torch.nn.Module]] = []
        for path, part in module.named_modules():
            prefix = f"{path}." if path else ""
            for key in part._buffers.keys() - part._non_persistent_buffers_set:
                self._buffers.append((prefix + key, part._buffers, key))
            if type(part).get_extra_state is not torch.nn.Module.get_extra_state:
                self._extra.append((f"{prefix}_extra_state", part))

    @property
    def asks(self) -> bool:
        return bool(self._extra)

    def keep(self, copies: Copies) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, buffers, own in self._buffers:
            buffer = buffers.get(own)
            if buffer is not None:
                kept[key] = copies.tensor(buffer)
        for key, part in self._extra:
            kept[key] = copies.of(part.get_extra_state(), self._name)
        return kept


def _keep_group(group: dict[str, Any], name: str, copies: Copies) -> dict[str, Any]:
    values = group.copy()
    del values["params"]
    kept: dict[str, Any] = copies.of(values, name)
    return kept


def _keep_scaler(value: torch.amp.GradScaler, copies: Copies) -> list[torch.Tensor | None]:
    """Its tensors: its `state_dict` waits for the device."""
    moving = (value._scale, value._growth_tracker)
    return [None if tensor is None else copies.tensor(tensor) for tensor in moving]


class Owned:
    """The parameters that optimizers own, and whether something has gone by their steps.

    An optimizer's step is told by torch's hook. This sees operations that count versions, tensors
    that were exchanged, and writes past the counters (`.data`, fused kernels), by a few bytes from
    the middle of each. What resets or loads an optimizer's own state is seen by one entry of it.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._addresses: tuple[int, ...] = ()
        self._middles: list[Any] = []
        self._elsewhere: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._seen: Any = None
        self._states: Any = None

    def parameters(self) -> list[torch.Tensor]:
        return [p for o in self._optimizers for group in o.param_groups for p in group["params"]]

    def note(self) -> None:
        self._seen = self._look()
        self._states = [_mark(o.state) for o in self._optimizers]
        if self._elsewhere:
            with torch.no_grad():
                kept, now = zip(*self._elsewhere, strict=True)
                torch._foreach_copy_(kept, now)

    def moved(self) -> str:
        """What has, with its verb; "" for nothing."""
        if self._seen != self._look() or not all(
            torch.equal(kept.view(torch.uint8), now.view(torch.uint8))
            for kept, now in self._elsewhere
        ):
            return "parameters were"
        if self._states != [_mark(o.state) for o in self._optimizers]:
            return "an optimizer's state was"
        return ""

    def _look(self) -> tuple[Any, ...]:
        parameters = self.parameters()
        addresses = tuple(map(_address, parameters))
        if addresses != self._addresses:
            self._addresses, self._middles = addresses, _middles(parameters)
            self._elsewhere = _elsewhere(parameters)
        return sum(map(_version, parameters)), addresses, [m.raw for m in self._middles]


def _elsewhere(parameters: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each parameter on a device some numbers from its middle, and where they are copied to:
    without waiting for it."""
    parts = [
        flat[max(0, (flat.numel() - SAMPLE_BYTES) // 2) :][:SAMPLE_BYTES]
        for flat in (
            p.detach().view(-1) for p in parameters if not _on_host(p) and p.is_contiguous()
        )
    ]
    return [(torch.empty_like(part), part) for part in parts]


def _mark(state: Any) -> tuple[Any, ...]:
    """Of an optimizer's state: how much there is, and the versions of its first entry's tensors."""
    first = next(iter(state.values()), None)
    tensors = first.values() if isinstance(first, dict) else ()
    versions = [t._version for t in tensors if isinstance(t, torch.Tensor)]
    return id(state), len(state), id(first), versions


def _on_host(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu


def _middles(parameters: Sequence[torch.Tensor]) -> list[Any]:
    return [
        (ctypes.c_char * SAMPLE_BYTES).from_address(p.data_ptr() + (p.nbytes - SAMPLE_BYTES) // 2)
        for p in parameters
        if _on_host(p) and p.nbytes >= SAMPLE_BYTES and p.is_contiguous()
    ]


# -- on the way out -------------------------------------------------------------------------------


def _rebuild(value: Any, kind: str, kept: Any, name: str, owned: set[int]) -> Any:
    """What `state_of` would have given at the boundary."""
    if kind == "module":
        return _rebuild_module(value, kept, name, owned)
    if kind == "optimizer":
        return _rebuild_optimizer(value, kept, name)
    if kind == "stateful" and isinstance(value, torch.amp.GradScaler):
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
