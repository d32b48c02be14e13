"""examples/char_gpt.py as people write it without walrecover: torch.save every EVERY steps.

The peer of the restart benchmark, under `torchrun --max-restarts`. It begins the saved epoch again,
so it has nothing to skip. STEPS names a file that gets a line for each completed step.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import torch
from char_gpt import GPT, TRAINING, Windows, arguments, loss_of, warm_up_then_cosine
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

STATE, EVERY = Path(os.environ["STATE"]), int(os.environ["EVERY"])
STEPS = os.open(os.environ["STEPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def save(model, optimizer, scheduler, epoch, step):
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    state = {name: stateful.state_dict() for name, stateful in state.items()}
    torch.save({**state, "epoch": epoch, "step": step}, STATE.with_suffix(".new"))
    STATE.with_suffix(".new").rename(STATE)


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    dataset = Windows(TRAINING, args.steps_per_epoch * args.batch_size, args.context)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers)
    model = GPT(args.layers, args.width, args.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    total = args.epochs * args.steps_per_epoch
    scheduler = LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, total))
    first = step = 0
    if STATE.exists():
        state = torch.load(STATE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first, step = state["epoch"], state["step"]
    for epoch in range(first, args.epochs):
        for x, y, _ in loader:
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            os.write(STEPS, f"{time.time()!r} {step} {os.getpid()}\n".encode())
            if step % EVERY == 0:
                save(model, optimizer, scheduler, epoch, step)


if __name__ == "__main__":
    main()
