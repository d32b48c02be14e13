"""The attached objects: captured to bytes in memory, restored into new ones with identical bits."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import random
from collections import Counter, OrderedDict, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler

from walrecover import plain, shards
from walrecover.errors import Corrupt, Mismatch
from walrecover.torch_adapter import leaves, memory
from walrecover.torch_adapter.objects import Attached, Stored, peel


def stored(attached: Attached) -> Stored:
    """What a snapshot of it gives back: every byte copied, the tree through its wire form."""
    state = attached.capture()
    tensors = {}
    for name, data in state.tensors.items():
        tensor, view = memory.empty(data.nbytes)
        view[:] = data.view()
        tensors[name] = (tensor, data.dtype, data.shape)
    return Stored(plain.decode(plain.encode(state.tree)), tensors)


def carry(value: Any, into: Any, *, strict: bool = True) -> list[str]:
    """Restore a snapshot of `value` into another object. Returns what did not fit."""
    there = Attached({"it": into})
    kept = stored(Attached({"it": value}))
    return there.check(kept, strict) + there.restore(kept, strict)


def bits(value: Any) -> Any:
    """A state as something that can be compared, to the bit."""
    state = Attached({"it": value}).capture()
    return plain.encode(state.tree), shards.digests(state.tensors)


# -- tensors --------------------------------------------------------------------------------------

TENSORS: dict[str, Tensor] = {
    "float32": torch.randn(3, 4),
    "bf16": torch.randn(5).bfloat16(),
    "half": torch.randn(5).half(),
    "float64 NaN": torch.tensor([math.nan, -0.0, math.inf], dtype=torch.float64),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "integers": torch.arange(-3, 3),
    "bytes": torch.arange(200, dtype=torch.uint8),
    "shorts": torch.arange(5, dtype=torch.int16),
    "unsigned": torch.arange(5).to(torch.uint16),
    "bool": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
    "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
    "transposed": torch.randn(3, 4).T,
    "strided": torch.randn(6, 4)[::2, 1:3],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "reversed": torch.randn(4).flip(0),
    "parameter": nn.Parameter(torch.randn(3)),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_in_a_dict_comes_back(kind: str) -> None:
    tensor = TENSORS[kind]
    into: dict[str, Any] = {}
    carry({"t": tensor}, into)
    back = into["t"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert bits({"t": back})[1] == bits({"t": tensor})[1]
    if memory.strides_of(tensor) is not None:
        assert back.stride() == tensor.stride()  # the same kernels will run on it


@pytest.mark.parametrize("kind", [k for k in TENSORS if k not in ("expanded", "parameter")])
def test_an_attached_tensor_is_filled_in_place(kind: str) -> None:
    tensor = TENSORS[kind]
    into = torch.zeros_like(tensor)
    address = into.data_ptr()
    carry(tensor, into)
    assert into.data_ptr() == address
    assert bits(into)[1] == bits(tensor)[1]


def test_a_part_of_a_larger_tensor_is_filled_where_it_is_attached() -> None:
    whole = torch.zeros(6)
    carry(torch.ones(2), whole[2:4])
    assert whole.tolist() == [0, 0, 1, 1, 0, 0]


def test_a_slice_of_the_data_in_a_dict_is_replaced_and_the_data_untouched() -> None:
    data, array = torch.arange(6.0), np.arange(6.0)
    batch = {"x": data[:2], "y": array[:2]}
    carry({"x": torch.tensor([8.0, 9.0]), "y": np.array([8.0, 9.0])}, batch)
    assert data.tolist() == array.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["x"].tolist() == batch["y"].tolist() == [8, 9]


def test_a_parameter_that_lies_within_flat_memory_is_filled_in_place() -> None:
    flat = torch.zeros(6)
    weight = nn.Parameter(flat[2:4])
    carry({"w": torch.ones(2)}, {"w": weight})
    assert flat.tolist() == [0, 0, 1, 1, 0, 0]
    with pytest.raises(Mismatch, match=r"it\['w'\] is 2 here and 3 in the snapshot"):
        carry({"w": torch.ones(3)}, {"w": weight})
    into = {"w": weight, "n": 1}
    notes = carry({"w": torch.ones(3), "n": 2}, into, strict=False)
    assert notes == ["it: it['w'] is 2 here and 3 in the snapshot"]
    assert (into["n"], into["w"] is weight) == (2, True)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo tensor"),
        (torch.empty(3, device="meta"), "on the meta device"),
        (nn.LazyLinear(3), "let the model see a batch before attach"),
    ],
)
def test_a_tensor_without_bytes_of_its_own_is_refused_by_its_path(tensor: Any, said: str) -> None:
    value = tensor if isinstance(tensor, nn.Module) else {"a": [tensor]}
    with pytest.raises(TypeError, match=rf"it\['(a|weight)'\](\[0\])? .*{said}"):
        Attached({"it": value})


# -- modules --------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.tensor(3, dtype=torch.int32))
        self.register_buffer("mask", torch.ones(0, dtype=torch.bool))


def test_tied_weights_are_written_once_and_stay_tied() -> None:
    model, other = Tied(), Tied()
    state = Attached({"it": model}).capture()
    places = {(t.address, t.nbytes) for t in state.tensors.values()}
    assert len(state.tensors) == len(places) + 1  # the head is the embedding
    model.norm.num_batches_tracked += 7
    carry(model, other)
    assert other.head.weight is other.embedding.weight
    assert bits(other) == bits(model)


def test_extra_state_and_parametrizations() -> None:
    class Extra(nn.Module):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value
            self.layer = parametrizations.weight_norm(nn.Linear(3, 3))
            self.spectral = nn.utils.spectral_norm(nn.Linear(3, 3))

        def get_extra_state(self) -> Any:
            return self.value

        def set_extra_state(self, state: Any) -> None:
            self.value = state

    model, other = Extra({1: (2, "x")}), Extra(None)
    model.spectral(torch.randn(2, 3))
    carry(model, other)
    assert other.value == {1: (2, "x")}
    assert bits(other) == bits(model)
    x = torch.randn(2, 3)
    assert torch.equal(model.eval().spectral(x), other.eval().spectral(x))


def test_wrappers_are_peeled() -> None:
    model = nn.Linear(2, 2)
    compiled = torch.compile(model)
    assert peel(compiled) == (model, False)
    assert peel(nn.DataParallel(model)) == (model, False)
    other = nn.Linear(2, 2)
    carry(compiled, other)
    assert bits(other) == bits(model)


def test_a_mismatch_shows_five_keys_with_their_shapes() -> None:
    def made(width: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))

    with pytest.raises(Mismatch) as raised:
        carry(made(2), made(3))
    text = str(raised.value)
    assert "0.weight is 3×3 here and 2×2 there" in text
    assert "2.weight is" in text
    assert "2.bias" not in text
    assert "and 3 more" in text

    with pytest.raises(Mismatch, match=r"1\.weight is only in the snapshot; 1\.bias is only in"):
        carry(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(Mismatch, match=r"weight is torch\.bfloat16 here and torch\.float32 there"):
        carry(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    with pytest.raises(Mismatch, match="0 is a scalar here and 1 there"):
        carry(nn.ParameterList([torch.ones(1)]), nn.ParameterList([torch.ones(())]))


def test_what_fits_is_restored_where_it_need_not_all_fit() -> None:
    model, wider = nn.Linear(2, 2), nn.Linear(3, 2)
    notes = carry(model, wider, strict=False)
    assert notes == ["it: 1 of 2 keys do not fit: weight is 2×3 here and 2×2 there"]
    assert torch.equal(wider.bias, model.bias)


def test_the_kind_of_an_object_must_not_change() -> None:
    with pytest.raises(Mismatch, match="it is a module, and was a dict when the snapshot was"):
        carry({}, nn.Linear(1, 1))
    notes = carry({}, nn.Linear(1, 1), strict=False)
    assert notes == ["it is a module, and was a dict when the snapshot was taken"]


class Wrapping(nn.Module):
    """A wrapper that `attach` does not know."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner


def test_a_wrapper_that_the_snapshot_lacks_is_recognised_and_never_followed() -> None:
    model, inside = nn.Linear(2, 2), nn.Linear(2, 2)
    before = bits(inside)
    with pytest.raises(Mismatch) as raised:
        carry(model, Wrapping(inside))
    text = str(raised.value)
    assert "all of its keys: 2 names differ by `module.`, which only the model has" in text
    assert "attach the object at the depth at which it was attached" in text
    (note,) = carry(model, Wrapping(inside), strict=False)
    assert note.startswith("it: 4 of 4 keys do not fit: all of its keys: 2 names differ by")
    assert bits(inside) == before


def test_modules_that_were_renamed_are_recognised_beside_others_that_fit() -> None:
    def made(name: str) -> nn.Module:
        tower = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        return nn.ModuleDict({name: tower, "head": nn.Linear(2, 2)})

    before, after = made("tower"), made("encoder")
    with pytest.raises(Mismatch, match=r"not fit the snapshot: 4 names differ by `tower\.` in"):
        carry(before, after)
    (note,) = carry(before, after, strict=False)
    assert "8 of 10 keys do not fit: 4 names differ by `tower.` in the snapshot and `enc" in note
    assert torch.equal(after["head"].weight, before["head"].weight)


# -- optimizers and schedules ---------------------------------------------------------------------

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, foreach=True),
    "Adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=3, history_size=2),
    "Adafactor": torch.optim.Adafactor,
}


def trained(make: Any, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = make(model.parameters())
    train(model, optimizer, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for n in range(steps):
        x = torch.linspace(-1, n + 1, 12).reshape(4, 3)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(x).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_restored_optimizer_goes_on_with_the_same_bits(kind: str, before: int) -> None:
    model, optimizer = trained(OPTIMIZERS[kind], before)
    other, of_other = trained(OPTIMIZERS[kind], 1)
    carry(model, other)
    carry(optimizer, of_other)
    assert bits(of_other) == bits(optimizer)
    train(model, optimizer, 4)
    train(other, of_other, 4)
    assert bits(other) == bits(model)
    assert bits(of_other) == bits(optimizer)


@pytest.mark.parametrize("kind", ["Adam", "LBFGS"])
def test_float_state_under_bf16_parameters_is_not_rounded(kind: str) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 3).bfloat16()
        return model, OPTIMIZERS[kind](model.parameters())

    (model, optimizer), (_, other) = made(), made()
    for parameter in model.parameters():
        moment = torch.randn(parameter.shape)
        optimizer.state[parameter] = {
            "step": torch.tensor(1.0),
            "exp_avg": moment,
            "old": [moment, (moment, 1)],
        }
    carry(optimizer, other)
    assert bits(other) == bits(optimizer)
    (first, *_) = other.state.values()
    assert first["exp_avg"].dtype == first["old"][1][0].dtype == torch.float32


def test_state_of_channels_last_parameters_keeps_its_layout() -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model: nn.Module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, torch.optim.AdamW(model.parameters())

    (model, optimizer), (other, of_other) = made(), made()
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    carry(model, other)
    carry(optimizer, of_other)
    state, same = (next(iter(o.state.values())) for o in (optimizer, of_other))
    assert state["exp_avg"].stride() == same["exp_avg"].stride() == model.weight.stride()
    assert other.weight.stride() == model.weight.stride()


def test_an_optimizer_over_other_parameters_is_a_mismatch() -> None:
    _, small = trained(OPTIMIZERS["SGD"], 1)
    model = nn.Linear(3, 4)
    one_group = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(Mismatch, match=r"parameter groups hold \[2\] parameters here and \[4\]"):
        carry(small, one_group)
    grown = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    _, adam = trained(OPTIMIZERS["Adam"], 1)
    with pytest.raises(Mismatch, match=r"state\.0\.exp_avg is 4×3, its parameter 5×3"):
        carry(adam, torch.optim.Adam(grown.parameters()))


def test_state_of_the_parameters_that_fit_is_restored_where_it_need_not_all_fit() -> None:
    grown = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    _, adam = trained(OPTIMIZERS["Adam"], 3)
    other = torch.optim.Adam(grown.parameters())
    (note,) = carry(adam, other, strict=False)
    assert note.startswith("it: 3 of 4 keys do not fit: state.0.exp_avg is 4×3, its parameter 5×3")
    last = list(grown.parameters())[-1]
    assert set(other.state) == {last}
    assert other.state[last]["step"] == 3
    grown(torch.ones(1, 3)).sum().backward()
    other.step()  # what did not fit begins anew
    assert other.state[last]["step"] == 4
    assert other.state[grown[0].weight]["step"] == 1


SCHEDULES: dict[str, Any] = {
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5], 0.1),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (n + 1)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, 20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.PolynomialLR(o, 9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.3),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_restored_schedule_goes_on_the_same(kind: str) -> None:
    def made() -> tuple[torch.optim.Optimizer, Any]:
        _, optimizer = trained(OPTIMIZERS["SGD momentum"], 1)
        return optimizer, SCHEDULES[kind](optimizer)

    def follow(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[float]:
        found = []
        for n in range(steps):
            optimizer.step()
            schedule.step(*([1.0 + n] if kind == "ReduceLROnPlateau" else []))
            found.append(float(optimizer.param_groups[0]["lr"]))
        return found

    (optimizer, schedule), (other, of_other) = made(), made()
    follow(optimizer, schedule, 3)
    carry(optimizer, other)
    carry(schedule, of_other)
    assert follow(other, of_other, 6) == follow(optimizer, schedule, 6)
    assert bits(of_other) == bits(schedule)


def test_the_milestones_stay_a_counter() -> None:
    _, optimizer = trained(OPTIMIZERS["SGD"], 0)
    schedule, other = SCHEDULES["MultiStepLR"](optimizer), SCHEDULES["StepLR"](optimizer)
    carry(schedule, other)
    assert type(other.milestones) is Counter
    assert other.milestones == Counter({2: 2, 5: 1})


def test_a_scaler() -> None:
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=n) for n in (64.0, 2.0))
    scaler.scale(torch.ones(1))
    scaler.update(8.0)
    carry(scaler, other)
    assert other.get_scale() == 8.0
    assert bits(other) == bits(scaler)


def test_an_object_that_refuses_its_state_is_a_mismatch() -> None:
    class Strict:
        def state_dict(self) -> dict[str, int]:
            return {"a": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise ValueError("not mine")

    with pytest.raises(Mismatch, match="its load_state_dict refused the state: not mine"):
        carry(Strict(), Strict())


# -- generators -----------------------------------------------------------------------------------

GENERATORS: dict[str, Any] = {
    "torch": (lambda n: torch.Generator().manual_seed(n), lambda g: torch.rand(3, generator=g)),
    "python": (random.Random, lambda g: g.random()),
    "PCG64": (np.random.default_rng, lambda g: g.random(3)),
    "PCG64DXSM": (lambda n: np.random.Generator(np.random.PCG64DXSM(n)), lambda g: g.random(3)),
    "MT19937": (lambda n: np.random.Generator(np.random.MT19937(n)), lambda g: g.random(3)),
    "Philox": (lambda n: np.random.Generator(np.random.Philox(n)), lambda g: g.random(3)),
    "SFC64": (lambda n: np.random.Generator(np.random.SFC64(n)), lambda g: g.integers(9, size=3)),
    "RandomState": (np.random.RandomState, lambda g: g.standard_normal(3)),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_goes_on_where_it_stood(kind: str) -> None:
    make, draw = GENERATORS[kind]
    generator, other = make(1), make(2)
    draw(generator)
    carry(generator, other)
    assert repr(draw(other)) == repr(draw(generator))


def test_a_generator_of_another_kind_is_a_mismatch() -> None:
    with pytest.raises(Mismatch, match="the generator refused the state"):
        carry(GENERATORS["PCG64"][0](1), GENERATORS["Philox"][0](1))


# -- dicts, namespaces, arrays --------------------------------------------------------------------


@dataclasses.dataclass
class Course:
    epoch: int = 0
    best: float = math.inf
    seen: list[int] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    "make", [SimpleNamespace, argparse.Namespace, Course, dict], ids=lambda make: make.__name__
)
def test_a_record_is_filled_in_place_at_every_depth(make: Any) -> None:
    def get(record: Any, name: str) -> Any:
        return record[name] if isinstance(record, dict) else getattr(record, name)

    record = make(epoch=3, best=0.5, seen=[1, 2])
    other = make(epoch=0, best=math.inf, seen=[])
    seen = get(other, "seen")
    carry(record, other)
    assert other == record
    assert get(other, "seen") is seen


def test_containers_that_the_script_knows_by_another_name_are_filled() -> None:
    def made(full: bool) -> dict[str, Any]:
        return {
            "list": [1, (2,)] if full else [],
            "dict": {"inner": {1: [3]}} if full else {"inner": {}, "gone": 1},
            "set": {1} if full else {2},
            "deque": deque([1, 2] if full else [], maxlen=2),
            "counter": Counter("ab" if full else ""),
            "ordered": OrderedDict([(2, 1), (1, 2)] if full else [(1, 2), (2, 1)]),
            "tensor": torch.full((2,), float(full)),
            "array": np.full(2, float(full)),
        }

    full, other = made(True), made(False)
    known = dict(other)
    inner = other["dict"]["inner"]
    carry(full, other)
    assert all(other[name] is known[name] for name in other)
    assert other["dict"]["inner"] is inner
    assert bits(other) == bits(full)
    assert list(other["ordered"]) == [2, 1]


def test_keys_stand_in_the_order_in_which_they_were_stored() -> None:
    other = {"b": 1, "gone": 2, "a": 3}
    carry({"a": 1, "new": 5, "b": 2}, other)
    assert list(other.items()) == [("a", 1), ("new", 5), ("b", 2)]


def test_what_has_another_type_or_size_is_replaced() -> None:
    other: dict[str, Any] = {"a": [1], "t": torch.ones(2), "n": 1, "q": deque(maxlen=3)}
    carry({"a": (1,), "t": torch.ones(3), "n": None, "q": deque([1], maxlen=1)}, other)
    assert other["a"] == (1,)
    assert other["t"].shape == (3,)
    assert other["n"] is None
    assert other["q"].maxlen == 1


ARRAYS: dict[str, Any] = {
    "floats": np.random.rand(3, 2),
    "fortran": np.asfortranarray(np.random.rand(3, 2)),
    "strided": np.arange(10)[::3],
    "empty": np.empty((0, 3)),
    "scalar": np.array(3.0),
    "big endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array(["ab", "c"]),
    "dates": np.array(["2020-01-01"], dtype="M8[D]"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_comes_back(kind: str) -> None:
    array = ARRAYS[kind]
    into: dict[str, Any] = {}
    carry({"a": array}, into)
    assert into["a"].dtype == array.dtype
    assert into["a"].tolist() == array.tolist()
    if array.shape:
        attached = np.zeros_like(array)
        carry(array, attached)
        assert attached.tolist() == array.tolist()


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1),
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.str_("text"),
        np.str_(""),
        np.bytes_(b"ab"),
        np.complex64(1j),
        np.datetime64("2020-01-01"),
        torch.Size([2, 3]),
        torch.float16,
        torch.device("cpu"),
    ],
    ids=repr,
)
def test_small_types_come_back_as_they_were(value: Any) -> None:
    into: dict[str, Any] = {}
    carry({"v": value}, into)
    assert type(into["v"]) is type(value)
    assert into["v"] == value


def test_a_tensor_and_an_array_of_another_shape_are_mismatches() -> None:
    with pytest.raises(Mismatch, match=r"2 of torch\.float32 here, 3 of torch\.float32 there"):
        carry(torch.ones(3), torch.ones(2))
    with pytest.raises(Mismatch, match="of int64 here"):
        carry(np.ones(2), np.ones(2, dtype=int))


# -- refusals -------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("a",)


@dataclasses.dataclass(slots=True)
class SlottedRecord:
    a: int = 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, r"it is a int, which cannot be filled in place: put it into a dict, it=\{'value'"),
        ([1], "it is a list, which cannot be filled in place"),
        ("text", "it is a str"),
        (Slotted(), r"it is a .*Slotted, which a snapshot cannot hold"),
        (SlottedRecord(), r"it is a .*SlottedRecord, which a snapshot cannot hold"),
        (Course, "it is a builtins.type"),
        (lambda: 1, "it is a builtins.function"),
        (random.SystemRandom(), "SystemRandom"),
        ({"a": [object()]}, r"it\['a'\]\[0\] is a builtins\.object"),
        (SimpleNamespace(f=print), r"it\['f'\] is a builtins\.builtin_function"),
        ({"g": torch.Generator()}, r"it\['g'\] is a torch\._C\.Generator"),
        ({"a": np.array([object()])}, r"it\['a'\] is an array of object"),
        ({"a": np.zeros(1, dtype=[("x", int)])}, r"it\['a'\] is an array of \["),
        ({"a": np.ma.masked_array([1])}, r"it\['a'\] is a masked array"),
        (OrderedDict(a=Course()), r"it\['a'\] is a .*Course"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_kept_is_a_type_error_with_its_path(value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Attached({"it": value})


def test_an_object_whose_state_cannot_be_kept_is_refused_at_once() -> None:
    class Holding:
        def state_dict(self) -> dict[str, Any]:
            return {"deep": {"f": [print]}}

        def load_state_dict(self, state: Any) -> None: ...

    with pytest.raises(TypeError, match=r"it\['deep'\]\['f'\]\[0\] is a builtins"):
        Attached({"it": Holding()})


def test_none_is_no_object() -> None:
    assert Attached({"scheduler": None}).objects == {}


# -- names, replicas, damage ----------------------------------------------------------------------


def test_names_that_only_one_side_has() -> None:
    kept = stored(Attached({"a": {}, "b": {}}))
    there = Attached({"b": {}, "c": {}})
    with pytest.raises(Mismatch, match="a is in the snapshot, but was not attached; c was att"):
        there.check(kept, True)
    assert there.check(kept, False) == [
        "a is in the snapshot, but was not attached",
        "c was attached, but the snapshot does not hold it",
    ]


def test_tensors_are_named_by_their_path() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1)).backward()
    optimizer.step()
    one = torch.ones(1)
    attached = Attached({"model": model, "o": optimizer, "d": {"a.b": one, "a": {"b": one + 1}}})
    names = attached.capture().tensors.keys()
    assert {"model.weight", "o.state.0.exp_avg", "o.state.1.step", "d.a.b", "d.a.b~2"} <= names


def test_tensors_that_are_given_back_are_copies() -> None:
    kept = stored(Attached({"it": {"t": torch.ones(2)}}))
    for _ in range(2):
        into: dict[str, Any] = {}
        Attached({"it": into}).restore(kept, True)
        assert into["t"].tolist() == [1, 1]
        into["t"] += 1


@pytest.mark.parametrize(
    "value", [torch.randn(2, 3).T, torch.empty(0), np.arange(3), torch.Size([1])]
)
def test_a_leaf_can_hold_its_bytes_in_the_tree(value: Any) -> None:
    tree = plain.decode(plain.encode(plain.to_tree({"v": value}, "it", leaves.inline)))
    back = plain.from_tree(tree, leaves.build_inline)["v"]
    assert type(back) is type(value)
    assert repr(back) == repr(value)


@pytest.mark.parametrize(
    "leaf",
    [
        ["x", "tensor", ["none", "cpu", None]],
        ["x", "tensor", ["t", "cpu", [1]]],
        ["x", "tensor", ["t", "cpu", [1 << 40, 1]]],
        ["x", "tensor", ["t", "cpu", [-1, 1]]],
        ["x", "tensor", ["t", "cpu", [0, 0]]],
        ["x", "tensor", ["odd", "cpu", None]],
        ["x", "tensor", ["misfit", "cpu", None]],
        ["x", "tensor", 3],
        ["x", "array", "misfit"],
        ["x", "array", "none"],
        ["x", "dtype", "load"],
        ["x", "dtype", 3],
        ["x", "device", "nonsense"],
        ["x", "scalar", ["O", b"12345678"]],
        ["x", "scalar", ["<f8", b"1"]],
        ["x", "size", "text"],
        ["x", "unheard of", 1],
    ],
    ids=str,
)
def test_a_leaf_that_is_never_written_is_corrupt(leaf: Any) -> None:
    four = torch.zeros(16, dtype=torch.uint8)
    tensors = {
        "t": (four, "float32", (2, 2)),
        "odd": (four, "Tensor", (2, 2)),
        "misfit": (four, "float32", (3, 2)),
    }
    kept = Stored({"it": {"kind": "dict", "state": ["d", [["v", leaf]]]}}, tensors)
    with pytest.raises(Corrupt):
        Attached({"it": {}}).restore(kept, True)


def test_restoring_twice_gives_the_same(tmp_path: Any) -> None:
    model, optimizer = trained(OPTIMIZERS["Adam"], 3)
    record = {"n": [1], "t": torch.ones(2)}
    attached = Attached({"m": model, "o": optimizer, "r": record})
    kept, before = stored(attached), bits({"r": copy.deepcopy(record)})
    expected = [bits(value) for value in (model, optimizer)]
    for _ in range(2):
        train(model, optimizer, 2)
        record["n"].append(2)  # type: ignore[attr-defined]
        record["t"] += 1  # type: ignore[operator]
        attached.restore(kept, True)
        assert [bits(value) for value in (model, optimizer)] == expected
        assert bits({"r": record}) == before
