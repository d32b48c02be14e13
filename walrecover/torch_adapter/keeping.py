"""The state of the last boundary, kept so that it can still be saved when the next step fails.

Owns what is copied at each boundary, and the answer to whether the rest is still what it was then.
A failed step has moved buffers, generators, counters and schedules: those come from copies.
Parameters and the optimizers' state are too large to be copied; they are whole exactly while no
optimizer has stepped, which torch's global hook tells. What belongs to no optimizer and is too
large to be copied counts as unmoved only where its bytes are those of the last snapshot.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from walrecover import plain
from walrecover.errors import WalrecoverError
from walrecover.manifest import digest_of
from walrecover.shards import TensorData
from walrecover.torch_adapter.copies import Copies, TooMuch, is_plain
from walrecover.torch_adapter.leaves import leaf_into
from walrecover.torch_adapter.objects import Attached, State, state_of
from walrecover.torch_adapter.owned import Owned

_TORCHS_OWN = (torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)


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
        hows = {n: self._how(n, v, attached.kinds[n]) for n, v in attached.objects.items()}
        self._hows = [(name, how) for name, how in hows.items() if how]
        self._still: dict[str, Any] = {name: {} for name, how in hows.items() if not how}
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
            kept: dict[str, Any] = {**self._still}
            for name, how in self._hows:
                kept[name] = how(copies)
        except TooMuch as error:
            self.refusal = str(error)
            raise
        copies.finish()
        self._copies, self._kept, self._stepped = copies, kept, ""
        self._owned.note()

    def _how(self, name: str, value: Any, kind: str) -> Callable[[Copies], Any] | None:
        """What copies an object at a boundary; None for a module that has nothing to copy."""
        if kind == "module":
            moving = self._modules[name]
            return moving.keep if moving.moves else None
        if kind == "optimizer":
            return Groups(value, name).keep
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

    @property
    def moves(self) -> bool:
        return bool(self._buffers or self._extra)

    def keep(self, copies: Copies) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, buffers, own in self._buffers:
            buffer = buffers.get(own)
            if buffer is not None:
                kept[key] = copies.tensor(buffer)
        for key, part in self._extra:
            kept[key] = copies.of(part.get_extra_state(), self._name)
        return kept


class Group(NamedTuple):
    """A parameter group as it was, `kept` without its parameters. `plain`: its values cannot
    change, only be exchanged."""

    names: list[str]
    values: list[Any]
    kept: dict[str, Any]
    plain: bool


class Groups:
    """An optimizer's parameter groups: most boundaries find them as the last one did, which is
    seen without copying them."""

    def __init__(self, optimizer: torch.optim.Optimizer, name: str) -> None:
        self._optimizer, self._name = optimizer, name
        self._last: list[Group] = []

    def keep(self, copies: Copies) -> list[dict[str, Any]]:
        last, now = self._last, []
        kept = []
        for n, group in enumerate(self._optimizer.param_groups):
            values = [*group.values()]
            same = last[n] if n < len(last) else None
            if (
                same is None
                or not same.plain
                or len(values) != len(same.values)
                or not all(map(operator.is_, values, same.values))
                or [*group] != same.names
            ):
                same = self._copy(group, copies)
            now.append(same)
            kept.append(same.kept)
        self._last = now
        return kept

    def _copy(self, group: dict[str, Any], copies: Copies) -> Group:
        values = {key: value for key, value in group.items() if key != "params"}
        kept = copies.of(values, self._name)
        return Group([*group], [*group.values()], kept, all(map(is_plain, values.values())))


def _keep_scaler(value: torch.amp.GradScaler, copies: Copies) -> list[torch.Tensor | None]:
    """Its tensors: its `state_dict` waits for the device."""
    moving = (value._scale, value._growth_tracker)
    return [None if tensor is None else copies.tensor(tensor) for tensor in moving]


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
