"""A curve in TensorBoard that shows the surviving history only.

    walrecover run -- python examples/tensorboard_curve.py --log curves
    tensorboard --logdir curves

Steps that are done again after a crash were logged before it. `run.superseded_from` is the first
of them: TensorBoard drops what it holds from there on (`purge_step`). With `--uncut` it does not,
and the curve goes back and forth. Other loggers cut as well: W&B's `resume_from` takes the step
before.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

import walrecover


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit a line, and log the loss of each step.")
    parser.add_argument("--log", default="curves", help="TensorBoard's folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--uncut", action="store_true", help="leave superseded steps in the curve")
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    x = torch.linspace(-1, 1, 160).unsqueeze(1)
    loader = DataLoader(TensorDataset(x, 3 * x + 0.1 * torch.randn_like(x)), 16, shuffle=True)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    run = walrecover.attach(model=model, optimizer=optimizer)
    cut = None if args.uncut else run.superseded_from
    with SummaryWriter(args.log, purge_step=cut) as writer:
        for _ in run.loop(range(args.epochs)):
            for inputs, targets in run.loop(loader):
                loss = nn.functional.mse_loss(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss=loss)
                writer.add_scalar("loss", loss.item(), run.global_step)
                writer.flush()


if __name__ == "__main__":
    main()
