"""Train a small GPT, character by character, on the English text that ships with Python.

    walrecover run -- python examples/char_gpt.py

Kill it at any moment, as often as you like: it resumes, and ends with the weights, bit for bit, of
an undisturbed run. All it took are the import and the lines (1) to (4); the rest is plain PyTorch.
"""

import argparse
import hashlib
import math
import os
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import TransformerEncoderLayer, functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

import walrecover

TEXT = "".join(topics.values())
ALPHABET = sorted(set(TEXT))
CODES = torch.tensor([ALPHABET.index(character) for character in TEXT])
TRAINING, HELD_OUT = CODES[: len(CODES) * 19 // 20], CODES[len(CODES) * 19 // 20 :]


class Windows(Dataset[tuple[Tensor, Tensor, int]]):
    """`count` windows spread evenly over a text, each with itself shifted by one character, and its
    number."""

    def __init__(self, codes: Tensor, count: int, context: int) -> None:
        self.codes, self.count, self.context = codes, count, context

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        start = index * (len(self.codes) - self.context) // self.count
        window = self.codes[start : start + self.context + 1]
        return window[:-1], window[1:], index


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, context: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        shape = {"nhead": 4, "dim_feedforward": 4 * width, "dropout": dropout, "activation": "gelu"}
        shape |= {"batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(TransformerEncoderLayer(width, **shape) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        self.head.weight = self.characters.weight  # tied, as in GPT-2
        nn.init.normal_(self.characters.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(codes.shape[1])
        hidden = self.characters(codes) + self.positions[: codes.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, src_mask=causal, is_causal=True)
        return self.head(self.norm(hidden))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


@torch.no_grad()
def evaluate(model: GPT, prompt: str = "The ", length: int = 60) -> tuple[float, str]:
    """The loss on held-out text, and a sample of the model's own, which draws from the RNG."""
    model.eval()
    batches = DataLoader(Windows(HELD_OUT, 128, model.context), batch_size=32)
    losses = [loss_of(model, x, y).item() for x, y, _ in batches]
    codes = [ALPHABET.index(character) for character in prompt]
    for _ in range(length):
        logits = model(torch.tensor([codes[-model.context :]]))[0, -1]
        codes.append(int(torch.multinomial(logits.softmax(0), 1)))
    model.train()
    return sum(losses) / len(losses), "".join(ALPHABET[code] for code in codes)


def warm_up_then_cosine(step: int, total: int) -> float:
    return min((step + 1) / (total / 10), 0.55 + 0.45 * math.cos(math.pi * step / total))


def digest(model: nn.Module) -> str:
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


def note(file: str | None, step: int, numbers: Tensor) -> None:
    """Append which samples a step is made of, to a file of the script's own (`--ids`)."""
    if file:
        with open(file, "a") as lines:
            print(os.getpid(), step, *numbers.tolist(), file=lines)


def arguments(**defaults: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small GPT on Python's own documentation.")
    parser.add_argument("--ids", help="append the numbers of each step's windows to this file")
    settings = {"epochs": 5, "steps_per_epoch": 60, "batch_size": 16, "workers": 2, "seed": 1}
    settings |= {"layers": 4, "width": 144, "context": 32} | defaults
    for name, default in settings.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    dataset = Windows(TRAINING, args.steps_per_epoch * args.batch_size, args.context)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers)
    model = GPT(args.layers, args.width, args.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    total = args.epochs * args.steps_per_epoch
    scheduler = LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, total))

    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)  # (1)
    for epoch in run.loop(range(args.epochs)):  # (2)
        for x, y, numbers in run.loop(loader):  # (3)
            note(args.ids, run.global_step + 1, numbers)
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            run.step(loss=loss)  # (4): one step done, nothing half-done left
            if run.global_step % 20 == 0:
                print(f"step {run.global_step} loss {loss.item():.4f}", flush=True)
        held_out, sample = evaluate(model)
        print(f"epoch {epoch} held-out loss {held_out:.4f} {sample!a}", flush=True)
    print(f"weights sha256 {digest(model)}")


if __name__ == "__main__":
    main()
