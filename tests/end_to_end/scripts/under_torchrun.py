"""What torchrun starts, as a script. The first rank kills itself in each of its first lives."""

import json
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import walrecover

folder, kills = Path.cwd(), int(os.environ["KILLS"])
life, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
store = dist.FileStore(str(folder / f"store-{life}"), 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
torch.manual_seed(1)
data = TensorDataset(torch.randn(32, 4), torch.randn(32, 2))
model = DistributedDataParallel(torch.nn.Linear(4, 2))
optimizer = torch.optim.Adam(model.parameters())
sampler: DistributedSampler[int] = DistributedSampler(data, shuffle=True)

run = walrecover.attach(model=model, optimizer=optimizer, every="1steps")
begun = run.global_step
for epoch in run.loop(range(2)):
    sampler.set_epoch(epoch)
    for x, y in run.loop(DataLoader(data, 4, sampler=sampler)):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
        if rank == 0 and life < kills and run.global_step == begun + 3:
            os.kill(os.getpid(), signal.SIGKILL)
weights = [p.tolist() for p in model.parameters()]
(folder / f"result-{rank}").write_text(json.dumps([life, begun, run.global_step, weights]))
dist.destroy_process_group()
