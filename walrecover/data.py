"""Data in an order that does not depend on the machines: what a script imports.

from walrecover.data import GlobalBatchSampler

loader = DataLoader(dataset, batch_sampler=GlobalBatchSampler(dataset, 64, seed=1))
for batch in run.loop(loader):
    ...
"""

from walrecover.torch_adapter.ordering import GlobalBatchSampler
from walrecover.torch_adapter.sharded import ShardedDataset

__all__ = ["GlobalBatchSampler", "ShardedDataset"]
