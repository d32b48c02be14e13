"""Train the GPT of `char_gpt.py` on two processes that average their gradients (DDP over gloo).

    walrecover run -- torchrun --standalone --nproc-per-node 2 examples/char_gpt_ddp.py

Kill either rank, or both. The lines (1) to (4) are those of `char_gpt.py`: `attach` comes after
`init_process_group`, on every rank, and takes the DDP wrapper or the model inside it alike.
Each rank has dropout of its own, and only rank 0 evaluates: generators are kept for each rank.

The order of the data is that of all ranks together. So the run goes on with another number of them,
which divides the batch, and every sample is still trained on once in each epoch:

    walrecover run --name gpt -- torchrun --standalone --nproc-per-node 2 examples/char_gpt_ddp.py
    walrecover run --name gpt -- torchrun --standalone --nproc-per-node 3 examples/char_gpt_ddp.py
"""

import torch
import torch.distributed as dist
from char_gpt import (
    GPT,
    TRAINING,
    Windows,
    arguments,
    digest,
    evaluate,
    loss_of,
    note,
    warm_up_then_cosine,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import walrecover
from walrecover.data import GlobalBatchSampler


def main() -> None:
    args = arguments(epochs=3, steps_per_epoch=50, batch_size=12, layers=2, width=128, workers=1)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    dataset = Windows(TRAINING, args.steps_per_epoch * args.batch_size, args.context)
    sampler = GlobalBatchSampler(dataset, args.batch_size, seed=args.seed)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=args.workers)
    torch.manual_seed(args.seed)  # the same weights on every rank
    model = GPT(args.layers, args.width, args.context)
    replica = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(replica.parameters(), lr=3e-3)
    total = args.epochs * args.steps_per_epoch
    scheduler = LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, total))
    torch.manual_seed(args.seed + 1 + rank)  # another dropout on each

    run = walrecover.attach(model=replica, optimizer=optimizer, scheduler=scheduler)  # (1)
    for epoch in run.loop(range(args.epochs)):  # (2)
        for x, y, numbers in run.loop(loader):  # (3)
            note(args.ids, run.global_step + 1, numbers)
            loss = loss_of(replica, x, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            run.step(loss=loss)  # (4)
            if rank == 0 and run.global_step % 10 == 0:
                print(f"step {run.global_step} loss {loss.item():.4f}", flush=True)
        if rank == 0:
            held_out, sample = evaluate(model)
            print(f"epoch {epoch} held-out loss {held_out:.4f} {sample!a}", flush=True)
    if rank == 0:
        print(f"weights sha256 {digest(model)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
