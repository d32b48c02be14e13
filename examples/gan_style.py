"""A GAN in the way of PyTorch's dcgan example: two models, two optimizers, BatchNorm.

    walrecover run -- python examples/gan_style.py

What it shows:
- one `run.step()` for one iteration, after both halves: between the steps of the discriminator
  and of the generator the state is half-done, and no place to resume from;
- dcgan's trap: every few iterations images are drawn from fixed noise *after* the step and in
  train mode, which moves the running statistics of BatchNorm. It belongs to the iteration: state
  is captured only when the loop asks for its next batch;
- a plain tensor attached by name, filled in place on resume.
"""

import argparse

import torch
from char_gpt import digest
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import walrecover


def discs(count: int, size: int = 16) -> Tensor:
    """Images of one bright disc each, of random place and radius, on a dark ground."""
    grid = torch.linspace(-1, 1, size)
    x, y, radius = torch.rand(3, count, 1, 1)
    distance = ((grid - x + 0.5) ** 2 + (grid[:, None] - y + 0.5) ** 2).sqrt()
    return torch.tanh(8 * (0.2 + 0.4 * radius - distance)).unsqueeze(1)


def generator(width: int, noise: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(noise, 2 * width, 4, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.2),
        nn.Conv2d(2 * width, 1, 4),
        nn.Flatten(0),
    )


def judged(logits: Tensor, real: bool) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a GAN to draw discs.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--noise", type=int, default=16)
    parser.add_argument("--draw-every", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    dataset = TensorDataset(discs(args.images))
    loader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
    net_g, net_d = generator(args.width, args.noise), discriminator(args.width)
    adam_g = torch.optim.Adam(net_g.parameters(), lr=2e-3, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(net_d.parameters(), lr=5e-4, betas=(0.5, 0.999))
    fixed_noise = torch.randn(64, args.noise, 1, 1)

    run = walrecover.attach(
        net_g=net_g, net_d=net_d, adam_g=adam_g, adam_d=adam_d, fixed_noise=fixed_noise
    )
    for epoch in run.loop(range(args.epochs)):
        for (real,) in run.loop(loader):
            fake = net_g(torch.randn(len(real), args.noise, 1, 1))
            loss_d = judged(net_d(real), True) + judged(net_d(fake.detach()), False)
            adam_d.zero_grad()
            loss_d.backward()
            adam_d.step()

            loss_g = judged(net_d(fake), True)
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()

            run.step(loss_d=loss_d, loss_g=loss_g)
            if run.global_step % args.draw_every == 0:
                with torch.no_grad():
                    images = net_g(fixed_noise)  # in train mode, as dcgan does
                print(
                    f"epoch {epoch} step {run.global_step} "
                    f"loss_d {loss_d.item():.4f} loss_g {loss_g.item():.4f} "
                    f"bright {(images > 0).float().mean():.4f} of {(real > 0).float().mean():.4f}",
                    flush=True,
                )
    print(f"weights sha256 {digest(nn.ModuleList([net_g, net_d]))}")


if __name__ == "__main__":
    main()
