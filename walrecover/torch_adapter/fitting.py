"""How a stored state goes back into an object: what fits, what does not, and how that is said.

Owns the restoring of each kind of object, in place, and the sentence for what does not fit: renames
are recognised and named, never followed. What can be attached is `objects`' affair.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from walrecover import renames
from walrecover.errors import Mismatch
from walrecover.renames import Rename, Sign
from walrecover.torch_adapter import memory, moving

SHOWN = 5


def _raise_or_note(
    name: str, differences: list[str], strict: bool, total: int = 0, renamed: str = ""
) -> list[str]:
    """Raise the differences, or return them as one line. `total`: of how many keys; `renamed`:
    what some of them have in common."""
    if not differences:
        return []
    shown = "; ".join([*([renamed] if renamed else []), *differences[:SHOWN]])
    if len(differences) > SHOWN:
        shown += f", and {len(differences) - SHOWN} more"
    if strict:
        raise Mismatch(
            f"{name} does not fit the snapshot: {shown}. Build it as it was, or pass "
            f"strict=False to attach() to restore what fits"
        )
    if total:
        return [f"{name}: {len(differences)} of {total} keys do not fit: {shown}"]
    return [f"{name}: {shown}"]


def _restore_module(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    own = value.state_dict()
    found = _renamed(own, state)
    differences = [f"{k} is only in the snapshot" for k in state if k not in own]
    differences += [f"{k} is only in the model" for k in own if k not in state]
    fitting = type(state)()
    for key, stored in state.items():
        if key not in own:
            continue
        if reason := _misfit(own[key], stored):
            differences.append(f"{key} is {reason}")
            continue
        fitting[key] = stored
    total = len(own.keys() | state.keys())
    notes = _raise_or_note(name, differences, strict, total, _said(found, len(state)))
    plain = moving.filled_plainly(value)
    moves = {k: v for k, v in fitting.items() if k in plain and moving.fits(own[k], v)}
    moving.fill_living((own[key], stored) for key, stored in moves.items())
    rest = type(state)({key: deepcopy(v) for key, v in fitting.items() if key not in moves})
    # Without its versions, modules would take the state for one that an old torch wrote.
    if isinstance(rest, OrderedDict) and hasattr(own, "_metadata"):
        rest._metadata = own._metadata  # type: ignore[attr-defined]
    value.load_state_dict(rest, strict=False)
    return notes


def _misfit(mine: Any, stored: Any) -> str:
    """Why a stored tensor cannot be loaded into one of the model; "" where it can."""
    if not (isinstance(mine, torch.Tensor) and isinstance(stored, torch.Tensor)):
        return ""
    if mine.shape != stored.shape:
        return f"{_shape(mine)} here and {_shape(stored)} there"
    return f"{mine.dtype} here and {stored.dtype} there" if mine.dtype != stored.dtype else ""


def _renamed(own: Any, state: Any) -> list[Rename]:
    def signs(names: Any, beside: Any) -> dict[str, Sign]:
        return {k: Sign(_form(v)) for k, v in names.items() if k not in beside}

    return renames.pair(signs(state, own), signs(own, state))


def _form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    return type(value).__name__


def _said(found: list[Rename], stored: int) -> str:
    if not found:
        return ""
    text = "; ".join(renames.said(found, "the snapshot", "the model"))
    every = "all of its keys: " if len(found) == stored else ""
    return f"{every}{text}: attach the object at the depth at which it was attached"


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _restore_optimizer(value: Any, state: Any, name: str, strict: bool) -> list[str]:
    here = [len(group["params"]) for group in value.param_groups]
    there = [len(group["params"]) for group in state["param_groups"]]
    if here != there:
        return _raise_or_note(
            name, [f"parameter groups hold {here} parameters here and {there} there"], strict
        )
    parameters = [p for group in value.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    misshapen = _misshapen(state, numbers, parameters)
    notes = _raise_or_note(name, list(misshapen.values()), strict, len(parameters))
    # What does not fit begins anew: an optimizer makes the state that a parameter lacks.
    fits = {n: held for n, held in state["state"].items() if n not in misshapen}
    by_number = dict(zip(numbers, parameters, strict=True))
    fits = _owned(fits, {n: value.state.get(by_number.get(n), {}) for n in fits})
    rest = {key: deepcopy(held) for key, held in state.items() if key != "state"}
    value.load_state_dict({**rest, "state": fits})
    # load_state_dict casts float state to its parameter's type: fp32 moments of bf16 parameters
    # would come back rounded. Put back what was stored.
    for number, parameter in zip(numbers, parameters, strict=True):
        mine = value.state.get(parameter, {})
        for key, stored in fits.get(number, {}).items():
            if key in mine:
                mine[key] = _uncast(mine[key], stored)
    return notes


def _owned(state: dict[Any, Any], mine: dict[Any, Any]) -> dict[Any, Any]:
    """A state that an optimizer may keep, of one that is borrowed: in the memory of `mine`, its
    own, where that fits. Not all that hangs on a number is a dict of tensors."""
    places = [
        (number, key)
        for number, held in state.items()
        if isinstance(held, dict)
        for key, value in held.items()
        if isinstance(value, torch.Tensor)
    ]
    stored = [state[number][key] for number, key in places]
    own = dict(zip(places, moving.own(stored, [_held(mine, *at) for at in places]), strict=True))
    return {
        number: {
            key: own[number, key] if (number, key) in own else deepcopy(value)
            for key, value in held.items()
        }
        if isinstance(held, dict)
        else deepcopy(held)
        for number, held in state.items()
    }


def _held(mine: dict[Any, Any], number: Any, key: Any) -> Any:
    held = mine.get(number)
    return held.get(key) if isinstance(held, dict) else None


def _uncast(loaded: Any, stored: Any) -> Any:
    if isinstance(loaded, torch.Tensor) and isinstance(stored, torch.Tensor):
        return loaded if loaded.dtype == stored.dtype else stored.to(loaded.device)
    if isinstance(loaded, list | tuple) and type(loaded) is type(stored):
        return type(loaded)(_uncast(*pair) for pair in zip(loaded, stored, strict=True))
    return loaded


_LIKE_THEIR_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def _misshapen(state: Any, numbers: list[int], parameters: list[torch.Tensor]) -> dict[int, str]:
    """By its number, state that belongs to a parameter of another shape: `load_state_dict` does
    not look."""
    found: dict[int, str] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, stored in state["state"].get(number, {}).items():
            if key not in _LIKE_THEIR_PARAMETER or number in found:
                continue
            if isinstance(stored, torch.Tensor) and stored.shape != parameter.shape:
                here, there = _shape(parameter), _shape(stored)
                found[number] = f"state.{number}.{key} is {there}, its parameter {here}"
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
    misfits: list[str] = []
    _fill(value, state, name, misfits)
    return _raise_or_note(name, misfits, strict)


def _fill(value: dict[Any, Any], state: Any, path: str, misfits: list[str]) -> None:
    merged = {k: _merged(value.get(k), state[k], f"{path}[{k!r}]", misfits) for k in state}
    value.clear()  # so that the keys stand in the order in which they were stored
    value.update(merged)


def _merged(mine: Any, stored: Any, path: str, misfits: list[str]) -> Any:
    """The stored value; a tensor, array or container that fits is filled in place, since the
    script may know it by another name. A parameter that does not fit stays as it is."""
    if isinstance(mine, torch.Tensor) and isinstance(stored, torch.Tensor):
        fits = mine.shape == stored.shape and mine.dtype == stored.dtype
        if mine.requires_grad and not fits:
            misfits.append(f"{path} is {_shape(mine)} here and {_shape(stored)} in the snapshot")
            return mine
        if fits and (mine.requires_grad or memory.owns_its_memory(mine)):
            with torch.no_grad():
                mine.copy_(stored)
            return mine
    elif type(mine) is not type(stored):
        return stored
    elif isinstance(mine, dict):
        _fill(mine, stored, path, misfits)
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


BORROWING = frozenset({"module", "optimizer", "tensor", "array"})
"""Kinds whose restore keeps nothing of the state that it is given."""

RESTORE: dict[str, Callable[[Any, Any, str, bool], list[str]]] = {
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
