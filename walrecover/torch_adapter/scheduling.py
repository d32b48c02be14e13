"""The schedulers among the attached objects, each with the optimizer that it drives.

Owns reading them, living and saved; what must agree is `schedules`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from walrecover import plain
from walrecover.errors import Mismatch
from walrecover.schedules import Schedule, disagreements
from walrecover.torch_adapter.objects import Attached, Stored


def check(attached: Attached, stored: Stored, strict: bool) -> list[str]:
    """Raises Mismatch where a learning rate, a parameter group or a step count does not fit its
    scheduler after the restore; not `strict`: returns it."""
    found = [
        text
        for now in _living(attached)
        for text in disagreements(now, _saved(now.scheduler, now.optimizer, stored))
    ]
    if found and strict:
        raise Mismatch(
            "; ".join(found) + ". Attach optimizer and scheduler, both as they were saved, and "
            "make them before attach(); strict=False lets it be"
        )
    return found


def _living(attached: Attached) -> Iterator[Schedule]:
    names = {
        id(value): name
        for name, value in attached.objects.items()
        if attached.kinds[name] == "optimizer"
    }
    for name, value in attached.objects.items():
        optimizer: Any = getattr(value, "optimizer", None)
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler) and id(optimizer) in names:
            yield _schedule(name, names[id(optimizer)], optimizer.param_groups, vars(value))


def _saved(scheduler: str, optimizer: str, stored: Stored) -> Schedule | None:
    if scheduler not in stored.tree or optimizer not in stored.tree:
        return None
    state, of = (
        plain.from_tree(stored.tree[name]["state"], lambda kind, payload: kind)
        for name in (scheduler, optimizer)
    )
    if not isinstance(state, dict) or not isinstance(of, dict) or "param_groups" not in of:
        return None
    return _schedule(scheduler, optimizer, of["param_groups"], state)


def _schedule(
    name: str, optimizer: str, groups: list[Mapping[str, Any]], state: Mapping[str, Any]
) -> Schedule:
    last, bases = state.get("_last_lr"), state.get("base_lrs")
    return Schedule(
        name,
        optimizer,
        _numbers([group.get("lr") for group in groups]),
        _numbers(last) if isinstance(last, list | tuple) else None,
        state.get("last_epoch"),
        len(bases) if isinstance(bases, list | tuple) else None,
    )


def _numbers(values: Any) -> tuple[float, ...]:
    """Rates that are tensors lie on a device, perhaps: they are not asked for."""
    return tuple(float(value) if isinstance(value, int | float) else 0.0 for value in values)
