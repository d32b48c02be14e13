"""Stored bytes that move into living objects: each by one copy, and none of them ever shared, since
they are given back twice (by `attach`, and in the loop)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from walrecover import parallel
from walrecover.torch_adapter import moving
from walrecover.torch_adapter.objects import Attached, Stored

from .test_objects import bits, stored


class Keeper(nn.Module):
    """Keeps what it is given to load, as observers of quantization do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.seen = state[f"{prefix}seen"]


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.extra = torch.randn(4)

    def get_extra_state(self) -> Tensor:
        return self.extra

    def set_extra_state(self, state: Tensor) -> None:
        self.extra = state


class Hooked(nn.Module):
    """Looks at all that it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.loaded: list[str] = []
        self.register_load_state_dict_pre_hook(self._look)

    def _look(self, module: nn.Module, state: dict[str, Any], *rest: Any) -> None:
        self.loaded = sorted(state)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 2),
    "norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
    "recurrent": lambda: nn.LSTM(3, 4, num_layers=2),
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
    "keeps what it is given": lambda: nn.Sequential(Keeper(), nn.Linear(3, 2)),
    "extra state": Extra,
    "hooked": Hooked,
}


def moved(value: nn.Module) -> None:
    """All of its memory that can be seen, changed in place."""
    with torch.no_grad():
        for tensor in (*value.parameters(), *value.buffers()):
            tensor.add_(1)
        if isinstance(value, Extra):
            value.extra.add_(1)


def given_back_twice(kept: Stored, into: Attached, change: Callable[[], None]) -> list[Any]:
    """The bits of an object behind each restore; all that it has is changed in between."""
    found = []
    for _ in range(2):
        into.restore(kept, True)
        found.append(bits(into.objects["it"]))
        change()
    return found


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_trains_on_leaves_what_was_stored_alone(kind: str) -> None:
    saved, other = MODULES[kind](), MODULES[kind]()
    expected = bits(saved)
    kept = stored(Attached({"it": saved}))
    again = given_back_twice(kept, Attached({"it": other}), lambda: moved(other))
    assert again == [expected, expected]


def test_a_hook_sees_all_that_is_loaded() -> None:
    saved, other = Hooked(), Hooked()
    Attached({"it": other}).restore(stored(Attached({"it": saved})), True)
    assert other.loaded == ["inner.bias", "inner.weight"]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),  # lists of tensors
    "learning rate in a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
}


def trained(kind: str) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = OPTIMIZERS[kind]([weight])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight @ torch.randn(3)).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def step() -> None:
        optimizer.step(closure)

    return optimizer, step


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("has_state", [False, True])
def test_an_optimizer_that_goes_on_leaves_what_was_stored_alone(kind: str, has_state: bool) -> None:
    saved, step = trained(kind)
    step()
    other, their_step = trained(kind)
    if has_state:
        their_step()
    kept = stored(Attached({"it": saved}))
    again = given_back_twice(kept, Attached({"it": other}), their_step)
    assert again == [bits(saved)] * 2


def test_what_an_optimizer_has_is_filled_where_it_lies() -> None:
    saved, step = trained("AdamW")
    step()
    other, _ = trained("AdamW")
    kept, into = stored(Attached({"it": saved})), Attached({"it": other})
    places = []
    for _ in range(2):
        into.restore(kept, True)
        (state,) = other.state.values()
        places.append({key: tensor.data_ptr() for key, tensor in state.items()})
    assert places[0] == places[1]


def test_state_that_lies_in_one_place_for_two_parameters_is_not_filled_twice() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    saved = torch.optim.SGD(weights, momentum=0.9)
    for number, weight in enumerate(weights):
        saved.state[weight]["momentum_buffer"] = torch.full((2,), float(number))
    other = torch.optim.SGD(weights, momentum=0.9)
    one = torch.zeros(2)
    for weight in weights:
        other.state[weight]["momentum_buffer"] = one
    Attached({"it": other}).restore(stored(Attached({"it": saved})), True)
    assert bits(other) == bits(saved)


def test_what_was_to_be_differentiated_through_a_restored_weight_is_an_error() -> None:
    model = nn.Linear(3, 1)
    kept = stored(Attached({"it": model}))
    loss = model(model(torch.ones(1, 3)).expand(1, 3)).square().sum()
    Attached({"it": model}).restore(kept, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_large_tensors_are_moved_in_pieces_by_several_threads() -> None:
    sizes = [3 * parallel.AT_ONCE_BYTES + 12, 4, 0, 2 * parallel.AT_ONCE_BYTES]
    sources = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
    targets = moving.fresh(sizes)
    moving.fill(zip(targets, sources, strict=True))
    assert all(torch.equal(*pair) for pair in zip(targets, sources, strict=True))
    assert all(target.data_ptr() % moving.ALIGNMENT == 0 for target in targets)
