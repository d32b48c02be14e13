"""What is kept at a boundary gives back the state of then, bit for bit, whatever has moved since;
and where it cannot, it says which object it is and why.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from walrecover import plain, shards
from walrecover.torch_adapter import owned
from walrecover.torch_adapter.copies import MAX_BYTES, MAX_VALUES, Copies, TooMuch
from walrecover.torch_adapter.keeping import Groups, Keeper, NotWhole
from walrecover.torch_adapter.objects import Attached, State

keepers: list[Keeper] = []


@pytest.fixture(autouse=True)
def hooks_removed() -> Iterator[None]:
    yield
    while keepers:
        keepers.pop().close()


def kept(**objects: Any) -> tuple[Attached, Keeper]:
    attached = Attached(objects)
    keeper = Keeper(attached)
    keepers.append(keeper)
    return attached, keeper


def bits(state: State) -> tuple[bytes, dict[str, str], frozenset[str]]:
    """All there is to a state; read at once, since tensors point into living memory."""
    return plain.encode(state.tree), shards.digests(state.tensors), state.shared


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()


def trained() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    learn(model, optimizer)
    return model, optimizer


class Counting(nn.Module):
    """Has state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {"count": 0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


def test_what_a_failed_step_moves_comes_back_as_it_was() -> None:
    model, optimizer = trained()
    model.append(Counting())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    generator = np.random.default_rng(1)
    drawn = random.Random(1)
    values: dict[str, Any] = {
        "list": [1, [2.5, "x"]],
        "tensor": torch.zeros(3),
        "array": np.zeros((2, 3)),
        "deque": deque([1, 2], maxlen=3),
        "counter": Counter("abc"),
        "default": defaultdict(list, a=[1]),
        "ordered": OrderedDict(b=1, a=[2]),
        "set": {3, 1},
        "tuple": (1, [2]),
        "bytes": bytearray(b"xy"),
        "scalar": np.float32(0.5),
    }
    space = SimpleNamespace(best=0.5, average=torch.ones(2))
    plain_tensor = torch.zeros(5)
    attached, keeper = kept(
        model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, generator=generator,
        drawn=drawn, values=values, space=space, tensor=plain_tensor,
    )  # fmt: skip
    scaler.scale(torch.ones(()))  # makes its tensors
    keeper.keep()
    before = bits(attached.capture())

    model(torch.randn(4, 4))
    model[3].seen["count"] += 1
    scheduler.step(1.0)
    optimizer.param_groups[0]["lr"] = 7.0
    scaler._scale.mul_(2.0)
    scaler._growth_tracker.add_(1)
    generator.random(), drawn.random()
    values["list"][1].append(3)
    for name in ("tensor", "array"):
        values[name][:] = 9.0
    values["deque"].append(5)
    values["default"]["a"].append(2)
    values["ordered"]["a"].append(2)
    values["tuple"][1].append(2)
    values["bytes"] += b"z"
    values["set"].add(9)
    values["new"] = 1
    space.best, space.average.data[0] = 0.9, 4.0
    plain_tensor.data.add_(1.0)

    assert bits(attached.capture()) != before
    assert bits(keeper.state({})) == before


def test_copies_at_the_next_boundary_are_of_then() -> None:
    """Their memory is used again."""
    model, optimizer = trained()
    attached, keeper = kept(model=model, optimizer=optimizer)
    for _ in range(3):
        learn(model, optimizer)
        keeper.keep()
        before = bits(attached.capture())
        model(torch.randn(4, 4))
        assert bits(keeper.state({})) == before


Group = dict[str, Any]


def exchange(name: str, value: Any) -> Callable[[Group], None]:
    return lambda group: group.__setitem__(name, value)


def rename(group: Group) -> None:
    name, value = group.popitem()
    group[f"{name}_"] = value


CHANGES: dict[str, Callable[[Group], Any]] = {
    "a number": exchange("lr", 0.5),
    "an equal number of another kind": exchange("weight_decay", 1),
    "the other zero": exchange("eps", -0.0),
    "a tuple": exchange("betas", (0.5, 0.9)),
    "a list, changed where it lies": lambda group: group["history"].append(3.0),
    "a tensor, changed where it lies": lambda group: group["scale"].mul_(2),
    "one more": exchange("warm", True),
    "one less": lambda group: group.pop("amsgrad"),
    "another name for a value": rename,
}


@given(st.lists(st.lists(st.sampled_from(sorted(CHANGES)), max_size=3), min_size=1, max_size=4))
def test_parameter_groups_are_kept_as_each_boundary_finds_them(changes: list[list[str]]) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    more = {"weight_decay": 1.0, "eps": 0.0}
    moving = {"history": [1.0], "scale": torch.ones(3)}
    groups = optimizer.param_groups
    groups[0] |= more
    groups.append({**groups[0], **more, **moving})
    found = Groups(optimizer, "optimizer")
    for names in changes:
        copies = Copies()
        kept = found.keep(copies)
        copies.finish()
        then = [{k: repr(v) for k, v in group.items() if k != "params"} for group in groups]
        for name in names:
            for group in groups:
                with contextlib.suppress(KeyError):
                    CHANGES[name](group)
        assert [{k: repr(v) for k, v in group.items()} for group in kept] == then


def test_buffers_known_by_two_names_are_both_there() -> None:
    model, optimizer = trained()
    model.append(nn.Module())
    model[3].register_buffer("mean", model[1].running_mean)
    attached, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    state = keeper.state({}).tensors
    assert bytes(state["model.3.mean"].view()) == bytes(state["model.1.running_mean"].view())
    assert bytes(state["model.3.mean"].view()) == model[1].running_mean.numpy().tobytes()
    assert attached


@torch.no_grad()
def by_hand(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter -= 0.1


@torch.no_grad()
def past_the_counters(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def exchanged(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


@pytest.mark.parametrize("write", [by_hand, past_the_counters, exchanged])
def test_an_update_that_goes_by_the_optimizer_is_seen(write: Callable[[nn.Module], None]) -> None:
    model, optimizer = trained()
    _, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    write(model)
    with pytest.raises(NotWhole, match="not an optimizer's step"):
        keeper.state({})


@pytest.mark.parametrize("write", [by_hand, past_the_counters, exchanged])
def test_such_an_update_is_seen_where_memory_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[nn.Module], None]
) -> None:
    """As on a device: with operations only. (That nothing waits for one is not shown here.)"""
    monkeypatch.setattr(owned, "_on_host", lambda tensor: False)
    model, optimizer = trained()
    attached, keeper = kept(model=model, optimizer=optimizer)
    for _ in range(2):
        learn(model, optimizer)
        keeper.keep()
        assert bits(keeper.state({})) == bits(attached.capture())
    write(model)
    with pytest.raises(NotWhole, match="not an optimizer's step"):
        keeper.state({})


def cleared(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def emptied(optimizer: torch.optim.Optimizer) -> None:
    for parameter in optimizer.state:
        optimizer.state[parameter] = {}


def zeroed(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].zero_()


def loaded(optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("reset", [cleared, emptied, zeroed, loaded])
def test_an_optimizer_that_was_reset_is_seen(
    reset: Callable[[torch.optim.Optimizer], None],
) -> None:
    model, optimizer = trained()
    attached, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    reset(optimizer)
    with pytest.raises(NotWhole, match="an optimizer's state was changed by something"):
        keeper.state({})
    keeper.keep()
    assert bits(keeper.state({})) == bits(attached.capture())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, fused=True),  # counts no versions
        lambda p: torch.optim.SGD(p, lr=0.0, foreach=True),  # changes no bit
        lambda p: torch.optim.LBFGS(p, max_iter=2),
    ],
)
def test_a_step_that_has_begun_is_seen(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = make(model.parameters())
    _, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()

    def closure() -> float:
        model(torch.randn(4, 4)).sum().backward()
        raise KeyError("in the closure")

    if not isinstance(optimizer, torch.optim.LBFGS):
        learn(model, optimizer)
    else:
        with pytest.raises(KeyError):
            optimizer.step(closure)  # type: ignore[arg-type]
    with pytest.raises(NotWhole, match=rf"{type(optimizer).__name__}.step\(\) had begun"):
        keeper.state({})
    keeper.keep()
    keeper.state({})  # whole again


def test_an_optimizer_that_nobody_attached_counts_too() -> None:
    model, optimizer = trained()
    _, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    learn(*trained())
    with pytest.raises(NotWhole, match="had begun"):
        keeper.state({})


def test_a_trained_parameter_without_an_optimizer_is_named() -> None:
    model, _ = trained()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    _, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    with pytest.raises(NotWhole, match=r"model\.1\.weight is trained and belongs to no attached"):
        keeper.state({})


def test_frozen_parameters_count_while_they_are_those_of_the_last_snapshot() -> None:
    model, optimizer = trained()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    attached, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    with pytest.raises(NotWhole, match="no snapshot holds it yet"):
        keeper.state({})
    known = shards.digests(attached.capture().tensors)
    keeper.state(known)
    model[0].bias.data.add_(1.0)  # a teacher that follows, moved in the forward
    with pytest.raises(NotWhole, match=r"model\.0\.bias moves, and is too large"):
        keeper.state(known)


def test_what_is_too_large_to_be_copied_must_not_have_moved() -> None:
    large = torch.zeros(MAX_BYTES // 4 + 1)
    model, optimizer = trained()
    attached, keeper = kept(model=model, optimizer=optimizer, average={"of": large})
    keeper.keep()
    known = shards.digests(attached.capture().tensors)
    assert bits(keeper.state(known)) == bits(attached.capture())
    large.data[0] = 1.0
    with pytest.raises(NotWhole, match=r"average\.of moves"):
        keeper.state(known)


def test_modules_that_were_rebuilt_are_seen() -> None:
    model, optimizer = trained()
    _, keeper = kept(model=model, optimizer=optimizer)
    keeper.keep()
    model[1] = nn.BatchNorm1d(8)
    with pytest.raises(NotWhole, match="model has other modules"):
        keeper.state({})


class OwnState(nn.Linear):
    def state_dict(self, *given: Any, **more: Any) -> Any:
        return super().state_dict(*given, **more)


def test_code_of_its_own_makes_a_state_that_cannot_be_kept() -> None:
    model = nn.Sequential(OwnState(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, keeper = kept(model=model, optimizer=optimizer)
    assert keeper.refusal == "model.0 makes its state_dict by code of its own"


def test_more_values_than_are_copied_are_said_once_and_kept_no_more() -> None:
    values = {"drawn": [[n] for n in range(MAX_VALUES)]}
    _, keeper = kept(values=values)
    with pytest.raises(TooMuch, match=f"values.*more than {MAX_VALUES} plain values"):
        keeper.keep()
    keeper.keep()
    with pytest.raises(NotWhole, match="more than"):
        keeper.state({})


def test_a_tensor_that_is_not_dense_is_copied_whole() -> None:
    copies = Copies()
    values = torch.arange(3.0).expand(4, 3)
    first, second = copies.tensor(values), copies.tensor(values)
    copies.finish()
    assert torch.equal(first, values) and first is second
