"""Random generators begun anew from a seed, in the form in which they are kept.

Owns making states; which generators get one, and from which seed, is decided elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from walrecover import plain
from walrecover.shards import TensorData
from walrecover.torch_adapter import memory, rng
from walrecover.torch_adapter.leaves import StoredTensors, build_from, leaf_into


def global_states(seeds: Mapping[str, int], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The global generators' states, as `rng.capture` has them. `kept`: those they replace. A
    device that is not there has none."""
    states = {}
    for name, seed in seeds.items():
        state = _global(name, seed, kept.get(name))
        if state is not None:
            states[name] = state
    return states


def _global(name: str, seed: int, kept: Any) -> Any:
    if name == "python":
        return rng.packed_python(random.Random(seed).getstate())
    if name == "numpy":
        import numpy as np

        kind = kept[0] if kept else rng.TWISTER
        drawn = np.random.RandomState(getattr(np.random, kind)(seed))
        return rng.packed_numpy(drawn.get_state(legacy=False))
    device = "cpu" if name == "torch" else name
    if device != "cpu" and not _is_there(device):
        return None
    return memory.bytes_of(_torch(seed, device))


def _torch(seed: int, device: str = "cpu") -> torch.Tensor:
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    return generator.get_state()


def _is_there(device: str) -> bool:
    index = int(device.partition(":")[2] or 0)
    return torch.cuda.is_available() and index < torch.cuda.device_count()


def object_state(
    kind: str, tree: Any, tensors: StoredTensors, name: str, seed: int
) -> tuple[Any, dict[str, tuple[torch.Tensor, str, tuple[int, ...]]]]:
    """The wire form of an attached generator's state, and the tensors that it refers to. `tree`,
    `tensors`: the state that it replaces."""
    kept = plain.from_tree(tree, build_from(tensors))
    made: dict[str, TensorData] = {}
    state = plain.to_tree(_of_object(kind, kept, seed), name, leaf_into(made))
    return state, {key: (_own(data), data.dtype, data.shape) for key, data in made.items()}


def _of_object(kind: str, kept: Any, seed: int) -> Any:
    if kind == "torch generator":
        device = "cpu" if len(kept) > 16 else "cuda:0"  # a device's is a seed and an offset
        there = device == "cpu" or _is_there(device)
        return memory.bytes_of(_torch(seed, device)) if there else kept
    if kind == "python generator":
        return random.Random(seed).getstate()
    import numpy as np

    drawn = getattr(np.random, kept["bit_generator"])(seed)
    if "has_gauss" in kept:
        return np.random.RandomState(drawn).get_state(legacy=False)
    return drawn.state


def _own(data: TensorData) -> torch.Tensor:
    tensor, view = memory.empty(data.nbytes)
    view[:] = data.view()
    return tensor
