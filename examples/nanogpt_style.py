"""A loop in nanoGPT's way: no DataLoader, batches drawn from the RNG, one of them always ahead.

    walrecover run -- python examples/nanogpt_style.py

What it shows:
- the generators are part of the state, so that `get_batch` goes on drawing where it stopped;
- the batch fetched ahead is part of the state too: `batch` is a dict of tensors, and attached;
- `run.step()` once per optimizer step, not per micro-batch; a step that GradScaler skips, as
  the first ones here, counts like any other;
- an evaluation at the head of the iteration, and a learning rate set by hand.
"""

import argparse

import torch
from char_gpt import GPT, HELD_OUT, TRAINING, digest, loss_of, warm_up_then_cosine
from torch import Tensor, nn

import walrecover


def get_batch(codes: Tensor, size: int, context: int) -> dict[str, Tensor]:
    starts = torch.randint(len(codes) - context, (size,)).tolist()
    return {
        "x": torch.stack([codes[start : start + context] for start in starts]),
        "y": torch.stack([codes[start + 1 : start + 1 + context] for start in starts]),
    }


@torch.no_grad()
def estimate_loss(model: GPT, size: int, batches: int = 4) -> dict[str, float]:
    model.eval()
    losses = {}
    for split, codes in {"train": TRAINING, "held-out": HELD_OUT}.items():
        drawn = [get_batch(codes, size, model.context) for _ in range(batches)]
        losses[split] = sum(loss_of(model, **batch).item() for batch in drawn) / batches
    model.train()
    return losses


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small GPT in nanoGPT's way.")
    parser.add_argument("--max-iters", type=int, default=100)
    parser.add_argument("--eval-every", type=int, default=20)
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches in a step")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    model = GPT(args.layers, args.width, args.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    # A scale so large that the first steps overflow, as they do with float16.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=20)
    batch = get_batch(TRAINING, args.batch_size, args.context)

    run = walrecover.attach(model=model, optimizer=optimizer, scaler=scaler, batch=batch)
    for iteration in run.loop(range(args.max_iters)):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warm_up_then_cosine(iteration, args.max_iters)
        if iteration % args.eval_every == 0:
            losses = estimate_loss(model, args.batch_size)
            shown = " ".join(f"{split} {loss:.4f}" for split, loss in losses.items())
            print(f"iteration {iteration} {shown} scale {scaler.get_scale():.0e}", flush=True)
        for _ in range(args.accumulate):
            loss = loss_of(model, **batch) / args.accumulate
            batch.update(get_batch(TRAINING, args.batch_size, args.context))  # one batch ahead
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        run.step(loss=loss * args.accumulate)
    print(f"weights sha256 {digest(model)}")


if __name__ == "__main__":
    main()
