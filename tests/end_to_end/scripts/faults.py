"""A training script whose resume goes wrong in one chosen way, as real ones do.

`fault` names it, and is given to the attempt that resumes. The faults are planted in what restores
and in what trains, never in what compares.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, Dataset

import walrecover
from tests.support.waiting import last_commit, wait_until
from walrecover import entries
from walrecover.data import GlobalBatchSampler
from walrecover.rundir import RunDir, list_runs
from walrecover.sequence import Sequence
from walrecover.session import restoring
from walrecover.torch_adapter import loaders, rng
from walrecover.torch_adapter.objects import Attached, Stored

from .ranks import group
from .toy import network, samples, seed

_advance, _begin = loaders.advance, loaders.begin
_restore_rng, _restore = rng.restore, Attached.restore


# -- faults of restoring --------------------------------------------------------------------------


def _older(rank: int, world: int) -> Stored:
    """What the snapshot before the newest holds."""
    root = Path.cwd() / ".walrecover"
    run = RunDir(root, list_runs(root)[0])
    snapshot = entries.candidates(Sequence(run.sequence).read())[1].snapshot
    return restoring.read(run, snapshot, rank, world).stored


def _take(attached: Attached, stored: Stored, prefix: str) -> None:
    """Give the living tensors whose names begin so the bytes of a stored state."""
    names = [name for name in attached.capture().tensors if name.startswith(prefix)]
    assert names
    for name in names:
        kept = stored.tensors[name][0]
        attached.capture().tensors[name].view()[:] = kept.numpy().tobytes()


def _behind(prefix: str, rank: int = 0, world: int = 1) -> Callable[..., list[str]]:
    def restore(self: Attached, stored: Stored, strict: bool) -> list[str]:
        notes = _restore(self, stored, strict)
        _take(self, _older(rank, world), prefix)
        return notes

    return restore


def _flipped(self: Attached, stored: Stored, strict: bool) -> list[str]:
    notes = _restore(self, stored, strict)
    weight = self.objects["model"][0].weight
    with torch.no_grad():
        weight.view(torch.int32)[3, 2] ^= 1  # the last bit of one mantissa
    return notes


def _restarted(self: Attached, stored: Stored, strict: bool) -> list[str]:
    notes = _restore(self, stored, strict)
    scheduler = self.objects["scheduler"]
    scheduler.last_epoch = 0
    scheduler._last_lr = list(scheduler.base_lrs)
    for group_, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group_["lr"] = rate
    return notes


def _plant(fault: str, rank: int = 0, world: int = 1) -> None:
    if fault == "rng not restored":
        rng.restore = lambda state: _restore_rng({n: s for n, s in state.items() if n != "torch"})
    elif fault == "sampler off by one":
        loaders.advance = lambda *given: _advance(*given[:-1], given[-1] + 1)
    elif fault == "reader off by one":
        loaders.begin = lambda loader, this, skip=0: _begin(loader, this, skip and skip + 1)
    elif fault == "optimizer a step behind":
        Attached.restore = _behind("optimizer.state")  # type: ignore[method-assign]
    elif fault == "scheduler restarted":
        Attached.restore = _restarted  # type: ignore[method-assign]
    elif fault == "flipped bit":
        Attached.restore = _flipped  # type: ignore[method-assign]
    elif fault == "rank a step behind" and rank == 1:
        Attached.restore = _behind("", rank, world)  # type: ignore[method-assign]


# -- the script -----------------------------------------------------------------------------------


class Noisy(Dataset[Any]):
    """Samples with noise, of the worker's global generator or of one of its own."""

    def __init__(self, own: torch.Generator | None = None) -> None:
        self.data = samples(60)
        self.own = own

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.data[index]
        return x + 0.01 * torch.randn(4, generator=self.own), y


def _timed(worker: int) -> None:
    """What some write into worker_init_fn so that workers differ."""
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.own = torch.Generator().manual_seed(time.time_ns() + worker)


def _loader(fault: str, workers: int, ordered: bool) -> DataLoader[Any]:
    if ordered:
        data = samples(60)
        return DataLoader(data, batch_sampler=GlobalBatchSampler(data, 4, seed=1))
    if not workers:
        return DataLoader(samples(60), 4, shuffle=True)
    init = _timed if fault == "worker seeded from time" else None
    return DataLoader(Noisy(), 4, shuffle=True, num_workers=workers, worker_init_fn=init)


def training(fault: str = "", workers: int = 0, ordered: bool = False, paced: bool = False) -> None:
    """`paced`: no step is begun before the snapshot of the one before is committed, so that the
    next boundary journals its digests."""
    seed()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = ExponentialLR(optimizer, 0.9)
    _plant(fault)
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    first = True
    for x, y in run.loop(_loader(fault, workers, ordered)):
        if paced:
            wait_until(lambda: last_commit() >= run.global_step)
        if fault == "scheduler made anew" and first:
            scheduler.__dict__.update(last_epoch=0, _last_lr=[0.05])
            optimizer.param_groups[0]["lr"] = 0.05
        first = False
        _step(model, optimizer, scheduler, run, x, y)
        if fault == "buffers moved after the step":
            with torch.random.fork_rng():
                model(torch.randn(8, 4))  # images to look at, in train mode


def _step(model: nn.Module, optimizer: Any, scheduler: Any, run: Any, x: Tensor, y: Tensor) -> None:
    run._journal.sync()  # a kill would take the last milliseconds of it
    loss = cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    run.step(loss=loss, grad_norm=norm)


def two_ranks(store: str, rank: int, world: int = 2, fault: str = "") -> None:
    with group(store, rank, world):
        seed()
        model = DistributedDataParallel(network())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        scheduler = ExponentialLR(optimizer, 0.9)
        data = samples(240)
        loader = DataLoader(data, 4, sampler=range(rank, len(data), world))
        _plant(fault, rank, world)
        run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
        for x, y in run.loop(loader):
            _step(model, optimizer, scheduler, run, x, y)
