"""A training whose states are compared, and the checkpoint files that it writes beside them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

import walrecover

from .toy import learn, samples, seed


class Harm:
    """What a pickle can hold."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def training(width: int = 8) -> None:
    """Six steps with a snapshot after every second, then the files."""
    seed()
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    x, y = samples().tensors
    run = walrecover.attach(name="trained", model=model, optimizer=optimizer)
    for _ in run.loop(range(6)):
        run.step(loss=learn(model, optimizer, x, y))
    write_files(model.state_dict(), optimizer.state_dict())


def write_files(model: dict[str, Any], optimizer: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    torch.save({"model": model, "optimizer": optimizer}, "same.pt")
    torch.save({f"module.{name}": tensor for name, tensor in model.items()}, "wrapped.pt")
    save_file(model, "model.safetensors")
    planted = {f"module.{name}": tensor.clone() for name, tensor in model.items()}
    planted["module.0.weight"][1, 2] += 0.5
    planted["module.0.bias"][3] = float("nan")
    planted["module.1.bias"] = planted["module.1.bias"][:3]
    planted["module.2.weight"] = planted["module.2.weight"].bfloat16()
    del planted["module.2.bias"]
    planted["module.grown"] = torch.ones(5)
    group = optimizer["param_groups"][0] | {"lr": 0.1}
    state = {n: dict(held) for n, held in optimizer["state"].items()}
    state[1]["step"] = torch.tensor(5.0)
    other = {"state": state, "param_groups": [group]}
    torch.save({"model": planted, "optimizer": other, "epoch": 3}, "planted.pt")
    torch.save({"model": model, "callback": Harm()}, "harmful.pt")
    with open("same.pt", "rb") as whole, open("torn.pt", "wb") as torn:
        torn.write(whole.read()[:2000])
