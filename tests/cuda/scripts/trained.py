"""Mixed precision on a GPU: convolutions, BatchNorm, dropout, a loss that is scaled, a fused
optimizer, a schedule and a loader that pins its batches. Prints the digest of its weights.

`--dies` in the step behind `--at`: of a device's own assertion, each time; of its memory, of
SIGKILL, or of a loss that is NaN, the first time. CUBLAS_WORKSPACE_CONFIG must be set for it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import walrecover

CLASSES, PICTURES, BATCH, SIDE = 10, 2560, 64, 32


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.drop(x.mean((2, 3))))


def die(how: str, loss: torch.Tensor) -> None:
    if how == "assert":
        weights = torch.zeros(4, 4, device="cuda")
        functional.embedding(torch.tensor([99], device="cuda"), weights)
        torch.cuda.synchronize()
    elif not Path("died").exists():
        Path("died").touch()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "nan":
            loss.detach().fill_(torch.nan)
        else:
            torch.empty(1 << 44, dtype=torch.uint8, device="cuda")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dies", choices=("", "assert", "kill", "memory", "nan"), default="")
    parser.add_argument("--at", type=int, default=25)
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    pictures = torch.randn(PICTURES, 3, SIDE, SIDE)
    labels = torch.randint(CLASSES, (PICTURES,))
    loader = DataLoader(
        TensorDataset(pictures, labels), BATCH, shuffle=True, num_workers=2, pin_memory=True
    )
    model = Network(args.width).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**20)  # so large that steps are skipped
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    for _ in run.loop(range(args.epochs)):
        for x, y in run.loop(loader):
            with torch.autocast("cuda", torch.float16):
                scores = model(x.cuda(non_blocking=True))
                loss = functional.cross_entropy(scores, y.cuda(non_blocking=True))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if args.dies and run.global_step == args.at:
                die(args.dies, loss)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            run.step(loss=loss)
    weights = b"".join(t.cpu().numpy().tobytes() for t in model.state_dict().values())
    print("weights", hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    main()
