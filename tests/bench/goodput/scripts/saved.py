"""torch.save every N steps, beside and renamed. No fsync: a process dies, not the machine."""

import os

import torch
from task import Training, arguments

args = arguments()
training = Training(args)
path = args.folder / "state.pt"
if path.exists():
    training.restore(torch.load(path))
for step in training.steps():
    if step % args.every == 0:
        torch.save(training.state(), path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
