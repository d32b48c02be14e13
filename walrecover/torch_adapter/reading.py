"""What an iterable is to the ledger: what a position in it means, and how many a pass has.

Owns the knowledge of torch's samplers for that. Reads lengths and settings only, draws nothing.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from walrecover.consumed import Facts
from walrecover.torch_adapter import loaders


def facts(value: Any, iterator: Any) -> Facts:
    """The facts of a reader. `iterator`: the one that reads, which may tell each batch's ids."""
    for holder in _holders(value):
        describe = getattr(holder, "describe", None)
        if callable(describe):
            found = describe()
            if isinstance(found, Facts):
                return found
    if not isinstance(value, DataLoader):
        return Facts("item", _length(value))
    if not loaders.is_loader(value):
        return Facts("batch", _length(value))
    return _of_loader(value, hasattr(iterator, "handed"))


def _holders(value: Any) -> list[Any]:
    """Who may know the order: a loader's sampler or dataset, or the iterable itself."""
    if not isinstance(value, DataLoader):
        return [value]
    return [value.batch_sampler, value.sampler, value.dataset]


def _of_loader(loader: DataLoader[Any], tells: bool) -> Facts:
    size = loader.batch_size
    if size is None and loader.batch_sampler is not None:  # batches of the script's own making
        return Facts("sample") if tells else Facts("batch", _length(loader))
    length = _length(loader.sampler)
    if size is None:
        return Facts("sample", length, 1)
    if type(loader.batch_sampler) is not BatchSampler and not tells:
        return Facts("batch", _length(loader))
    if length is None or not loader.drop_last:
        return Facts("sample", length, size)
    dropped = length % size
    return Facts("sample", length - dropped, size, dropped=dropped)


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except (TypeError, NotImplementedError, AttributeError):
        return None
