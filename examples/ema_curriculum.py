"""A curriculum, an averaged model, a schedule that follows the validation loss, an early stop.

    walrecover run -- python examples/ema_curriculum.py

What it shows:
- the weights that count are an average over the past (EMA): one more object to attach;
- progress in plain values: `course` is a namespace, attached by name, with the stage that the
  curriculum has reached, the best loss so far and the epochs since;
- a loader that changes: the prologue of each epoch builds it for the stage. On resume the prologue
  is repeated, so it only *reads* `course`; what changes `course` stands after the inner loop;
- leaving by `break`: only the script knows that this was the end, and says so: `run.finish()`.
"""

import argparse
import math
from types import SimpleNamespace

import torch
from char_gpt import digest
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset, TensorDataset

import walrecover

LAST_STAGE = 2


def spirals(count: int) -> tuple[Tensor, Tensor]:
    """Points on two arms of a spiral, the innermost first: the further out, the harder."""
    label = torch.arange(count) % 2
    turn = torch.linspace(0.2, 1.0, count)
    angle = 3 * math.pi * turn + math.pi * label
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1)
    return points + 0.05 * torch.randn(count, 2), label


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(width, 2),
    )


def share_of(dataset: TensorDataset, stage: int) -> Subset:
    """The inner half of the points, then three quarters, then all."""
    return Subset(dataset, range(len(dataset) * (2 + stage) // 4))


@torch.no_grad()
def validate(model: AveragedModel, share: Subset) -> float:
    points, labels = share[:]
    return functional.cross_entropy(model(points), labels).item()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn two spirals, easy points first.")
    parser.add_argument("--epochs", type=int, default=40, help="at most")
    parser.add_argument("--patience", type=int, default=4, help="epochs without progress")
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    dataset = TensorDataset(*spirals(args.points))
    held_out = TensorDataset(*spirals(args.points // 4))
    model = network(args.width)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95)).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.3, patience=1, threshold=0.1)
    course = SimpleNamespace(stage=0, best=math.inf, epochs_since=0)

    run = walrecover.attach(
        model=model, ema=ema, optimizer=optimizer, scheduler=scheduler, course=course
    )
    for epoch in run.loop(range(args.epochs)):
        batch_size = args.batch_size * (1 + course.stage)
        loader = DataLoader(share_of(dataset, course.stage), batch_size, shuffle=True)
        for points, labels in run.loop(loader):
            loss = functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update_parameters(model)
            run.step(loss=loss)

        loss_held_out = validate(ema, share_of(held_out, course.stage))
        if course.stage == LAST_STAGE:
            scheduler.step(loss_held_out)
        print(
            f"epoch {epoch} step {run.global_step} stage {course.stage} "
            f"lr {scheduler.get_last_lr()[0]:.4f} held-out loss {loss_held_out:.4f}",
            flush=True,
        )
        if loss_held_out < course.best - 1e-3:
            course.best, course.epochs_since = loss_held_out, 0
        else:
            course.epochs_since += 1
        if course.stage < LAST_STAGE and loss_held_out < 0.3:
            course.stage, course.best, course.epochs_since = course.stage + 1, math.inf, 0
        if course.epochs_since > args.patience:
            break
    run.finish()
    print(f"weights sha256 {digest(ema)}")


if __name__ == "__main__":
    main()
