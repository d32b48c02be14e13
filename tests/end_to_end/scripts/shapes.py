"""The shapes that training loops have, each a whole script. All must survive any kill."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm

import walrecover

from .toy import accuracy, batches, learn, loss_of, network, samples, seed, training


def epoch_code(epochs: int = 3) -> None:
    """Code before and after the inner loop, drawing and changing state: dcgan's trap too."""
    model, optimizer, scheduler = training()
    course = {"noise": 0.0, "seen": Counter(), "history": []}
    history = course["history"]
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, course=course)
    loader = batches()
    for epoch in run.loop(range(epochs)):
        course["noise"] = float(torch.rand(()))
        order = random.sample(range(4), 4)
        for x, y in run.loop(loader):
            x = x[:, order] + course["noise"] * torch.randn_like(x)
            run.step(loss=learn(model, optimizer, x, y))
            course["seen"].update(y.tolist())
        scheduler.step()
        model(torch.randn(8, 4))  # in train mode: moves BatchNorm's buffers
        history.append((epoch, np.random.rand()))


def evaluation_with_loop() -> None:
    """Evaluation in the middle of an epoch, before and after the step, by its own run.loop."""
    model, optimizer, scheduler = training()
    best = {"accuracy": 0.0}
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, best=best)
    loader, held_out = batches(), batches(8)
    for _ in run.loop(range(2)):
        for n, (x, y) in run.enumerate(loader):
            if n % 3 == 1:
                best["accuracy"] = max(best["accuracy"], accuracy(model, run.loop(held_out)))
            run.step(loss=learn(model, optimizer, x, y))
            scheduler.step()
            if n % 3 == 2:
                best["accuracy"] -= accuracy(model, run.loop(held_out))
        accuracy(model, run.loop(held_out))


def evaluation_without_loop() -> None:
    model, optimizer, scheduler = training()
    best = {"accuracy": 0.0}
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, best=best)
    loader, held_out = batches(), batches(8)
    for _ in run.loop(range(2)):
        for n, (x, y) in run.enumerate(loader):
            run.step(loss=learn(model, optimizer, x, y))
            scheduler.step()
            if n % 2:
                best["accuracy"] = max(best["accuracy"], accuracy(model, held_out))


def early_stop() -> None:
    """Both loops can be left by break; only the script knows that this is the end."""
    model, optimizer, _ = training()
    course = SimpleNamespace(best=9.0, bad=0, stopped=False)
    run = walrecover.attach(model=model, optimizer=optimizer, course=course)
    loader = batches()
    for _ in run.loop(range(50)):
        for n, (x, y) in run.enumerate(loader):
            loss = learn(model, optimizer, x, y)
            run.step(loss=loss)
            if n == 3:
                break
        course.bad += 1
        model(torch.randn(8, 4))
        if course.bad == 3:
            break
    run.finish()


def curriculum() -> None:
    model, optimizer, _ = training()
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    course = SimpleNamespace(stage=0, loss=0.0)
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, course=course)
    dataset = samples()
    for _ in run.loop(range(3)):
        share = Subset(dataset, random.sample(range(len(dataset)), 8 + 6 * course.stage))
        course.loss = (
            0.0  # before the inner loop: a resume repeats it, and restores what came after
        )
        for x, y in run.loop(DataLoader(share, 3 + course.stage, shuffle=True)):
            loss = learn(model, optimizer, x, y)
            course.loss += loss.item()
            run.step(loss=loss)
        scheduler.step(course.loss)
        course.stage += 1


def accumulation() -> None:
    """Two micro-batches a step; what is left over is a step after the inner loop."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = batches(5)  # five micro-batches
    for _ in run.loop(range(3)):
        left = 0
        for x, y in run.loop(loader):
            loss = loss_of(model, x, y) / 2
            loss.backward()
            left += 1
            if left == 2:
                optimizer.step()
                optimizer.zero_grad()
                left = 0
                run.step(loss=loss)
        if left:
            optimizer.step()
            optimizer.zero_grad()
            run.step(loss=loss)


def gan() -> None:
    """Two optimizers are one step; sampling in train mode after it."""
    seed()
    generator, critic = (
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        network(),
    )
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.9))
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.05)
    fixed = torch.randn(6, 3)
    run = walrecover.attach(
        generator=generator,
        critic=critic,
        of_generator=of_generator,
        of_critic=of_critic,
        fixed=fixed,
    )
    for _ in run.loop(range(2)):
        for x, _y in run.loop(batches()):
            fake = generator(torch.randn(len(x), 3))
            both = torch.cat([critic(x), critic(fake.detach())])[:, 0]
            truth = torch.cat([torch.ones(len(x)), torch.zeros(len(x))])
            loss = binary_cross_entropy_with_logits(both, truth)
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            fooled = critic(fake)[:, 0]
            of_generator.zero_grad()
            binary_cross_entropy_with_logits(fooled, torch.ones(len(x))).backward()
            of_generator.step()
            run.step(loss=loss)
            generator(fixed)


def averaged() -> None:
    model, optimizer, scheduler = training()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run = walrecover.attach(model=model, ema=ema, optimizer=optimizer, scheduler=scheduler)
    for _ in run.loop(range(2)):
        for x, y in run.loop(batches()):
            run.step(loss=learn(model, optimizer, x, y))
            ema.update_parameters(model)
        scheduler.step()


def _draw_batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(x), (4,))
    return x[chosen], y[chosen]


def own_batches() -> None:
    """nanoGPT's way: batches drawn from the RNG, the next one fetched before the step is over."""
    model, optimizer, scheduler = training()
    x, y = samples().tensors
    batch: dict[str, Tensor] = {}
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler, batch=batch)
    batch["x"], batch["y"] = _draw_batch(x, y)
    for n in run.loop(range(12)):
        if n % 5 == 0:
            accuracy(model, [_draw_batch(x, y) for _ in range(2)])
        loss = loss_of(model, batch["x"], batch["y"])
        batch["x"], batch["y"] = _draw_batch(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.step(loss=loss)


def views_of_the_data() -> None:
    """The prefetched batch is a view of the dataset, which a restore must not write through."""
    model, optimizer, _ = training()
    x, y = samples(24).tensors
    batch = {"x": x[:4], "y": y[:4]}
    run = walrecover.attach(model=model, optimizer=optimizer, batch=batch)
    for n in run.loop(range(12)):
        start = 2 * n % 20
        loss = loss_of(model, batch["x"], batch["y"])
        batch["x"], batch["y"] = x[start : start + 4], y[start : start + 4]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)


def own_loop() -> None:
    """No run.loop at all: step() is the boundary, and comes last."""
    model, optimizer, scheduler = training()
    x, y = samples().tensors
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    while run.global_step < 12:
        loss = learn(model, optimizer, *_draw_batch(x, y))
        scheduler.step()
        if run.global_step % 4 == 3:
            accuracy(model, run.loop(batches(8)))
        run.step(loss=loss)
    run.finish()


class Shuffled:
    """A loader written by hand: it shuffles by itself and carries its own state."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.rng = random.Random(3)
        self.begun = self.rng.getstate()
        self.place = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.place:
            self.begun = self.rng.getstate()
        self.rng.setstate(self.begun)
        order = self.rng.sample(range(len(self.x)), len(self.x))
        while self.place < len(order):
            chosen = order[self.place : self.place + 4]
            self.place += 4
            yield self.x[chosen], self.y[chosen]
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun, self.place = state["begun"], state["place"]
        self.rng.setstate(self.begun)


def stateful_by_hand() -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = Shuffled(*samples().tensors)
    for _ in run.loop(range(2)):
        for x, y in run.loop(loader):
            run.step(loss=learn(model, optimizer, x, y))


def stateful_outside() -> None:
    """The outer loop's iterable has the state; the steps are made in a loop inside it."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for x, y in run.loop(Shuffled(*samples().tensors)):
        for half in run.loop([slice(0, 2), slice(0, None)]):
            run.step(loss=learn(model, optimizer, x[half], y[half]))


def torchdata_workers() -> None:
    torchdata_loader(workers=2)


def torchdata_loader(workers: int = 0) -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = StatefulDataLoader(samples(), 4, shuffle=True, num_workers=workers)
    for _ in run.loop(range(2)):
        for x, y in run.loop(loader):
            run.step(loss=learn(model, optimizer, x, y))


def torchdata_outside() -> None:
    """Its first item draws a seed where it is read, and none where it is restored."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for x, y in run.loop(StatefulDataLoader(samples(), 6, True, drop_last=True)):
        noise = torch.randn_like(x)
        for half in run.loop([slice(0, 3), slice(3, None)]):
            run.step(loss=learn(model, optimizer, x[half] + noise[half], y[half]))


def opaque() -> None:
    """A generator, read again from its beginning; it draws while it is read."""
    model, optimizer, _ = training()
    x, y = samples().tensors

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        shift = torch.rand(())
        for n in range(6):
            yield x[n : n + 4] + shift, y[n : n + 4]

    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in run.loop(range(2)):
        for batch in run.loop(drawn()):
            run.step(loss=learn(model, optimizer, *batch))


def endless() -> None:
    """The outer loop counts without end and is left by break."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for epoch in run.loop(itertools.count()):
        for x, y in run.loop(batches()):
            run.step(loss=learn(model, optimizer, x, y))
        if epoch == 1:
            break
    run.finish()


def one_after_the_other() -> None:
    """Two loops at the top level, and code between and behind them."""
    model, optimizer, scheduler = training()
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    for x, y in run.loop(batches()):
        run.step(loss=learn(model, optimizer, x, y))
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    model(torch.randn(8, 4))
    for _ in run.loop(range(2)):
        for x, y in run.loop(batches(8)):
            run.step(loss=learn(model, optimizer, x, y))
        scheduler.step()
    model(torch.randn(8, 4))


def plain_outer_loop() -> None:
    """Only the inner loop is wrapped."""
    model, optimizer, scheduler = training()
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    loader = batches()
    for _ in range(3):
        torch.rand(1)
        for x, y in run.loop(loader):
            run.step(loss=learn(model, optimizer, x, y))
        scheduler.step()


def plain_outer_loop_with_break() -> None:
    model, optimizer, scheduler = training()
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    loader = batches()
    for epoch in range(4):
        for n, (x, y) in run.enumerate(loader):
            run.step(loss=learn(model, optimizer, x, y))
            if n == 2 + epoch % 2:
                break
        scheduler.step()
        model(torch.randn(8, 4))
    run.finish()


def plain_outer_loop_with_leftover() -> None:
    """A step behind a loop at the top level: the next loop's first request is its boundary."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = batches(5)
    for _ in range(3):
        left = 0
        for x, y in run.loop(loader):
            loss = loss_of(model, x, y)
            loss.backward()
            left += 1
            if left == 2:
                optimizer.step()
                optimizer.zero_grad()
                left = 0
                run.step(loss=loss)
        if left:
            optimizer.step()
            optimizer.zero_grad()
            run.step(loss=loss)
    run.finish()


def plain_inner_loop() -> None:
    """Only the outer loop is wrapped: many steps, one boundary."""
    model, optimizer, scheduler = training()
    run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
    for n in run.loop(range(6)):
        for x, y in itertools.islice(batches(), 2 + n % 2):
            run.step(loss=learn(model, optimizer, x, y))
        scheduler.step()


def zipped() -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in run.loop(range(2)):
        for (x, y), (more, _), scale in run.loop(batches(), batches(3), [1.0, 0.5, 2.0, 1.5, 1.0]):
            run.step(loss=learn(model, optimizer, x + scale * more.mean(), y))


def under_tqdm() -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in tqdm(run.loop(range(2)), disable=False):
        for n, (x, y) in tqdm(run.enumerate(batches()), mininterval=0):
            loss = learn(model, optimizer, x, y)
            if n % 2 == 0:
                run.step(loss=loss)


def prologues() -> None:
    """Draws before, between and behind loops, kept in local variables: each repeats on resume."""
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    x, y = samples().tensors
    split = torch.randperm(len(x))[:16]
    for _ in run.loop(range(2)):
        order = split[torch.randperm(len(split))]
        for chosen in run.loop(order.split(4)):
            run.step(loss=learn(model, optimizer, x[chosen], y[chosen]))
        shift = torch.rand(4) + random.random()
        for chosen in run.loop(order[:8].split(4)):
            run.step(loss=learn(model, optimizer, x[chosen] + shift, y[chosen]))
    scale = torch.rand(4) + np.random.rand()
    for chosen in run.loop(split.split(4)):
        run.step(loss=learn(model, optimizer, scale * x[chosen], y[chosen]))


def three_deep() -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    dataset = samples()
    for _ in run.loop(range(2)):
        for shard in run.loop(torch.randperm(3)):
            share = Subset(dataset, range(int(shard), len(dataset), 3))
            for x, y in run.loop(DataLoader(share, 4, shuffle=True)):
                run.step(loss=learn(model, optimizer, x, y))
            torch.rand(1)


def persistent_workers() -> None:
    workers(persistent=True)


def workers(persistent: bool = False) -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = batches(num_workers=2, persistent_workers=persistent)
    for _ in run.loop(range(3)):
        for n, (x, y) in run.enumerate(loader):
            run.step(loss=learn(model, optimizer, x, y))
            if n == 3:
                break


def own_generators() -> None:
    """A loader with a generator of its own, a sampler with another, one for the noise."""
    model, optimizer, _ = training()
    noise = torch.Generator().manual_seed(5)
    numbers = np.random.default_rng(5)
    course: dict[str, Any] = {"last": deque(maxlen=3), "best": torch.zeros(2)}
    run = walrecover.attach(
        model=model, optimizer=optimizer, noise=noise, numbers=numbers, course=course
    )
    dataset = samples()
    sampler = WeightedRandomSampler(
        torch.linspace(1, 2, len(dataset)).tolist(), 20, generator=torch.Generator().manual_seed(6)
    )
    drawing = batches(generator=torch.Generator().manual_seed(7))
    for _ in run.loop(range(2)):
        for x, y in run.loop(DataLoader(dataset, 4, sampler=sampler)):
            x = x + torch.randn(x.shape, generator=noise) * numbers.random()
            loss = learn(model, optimizer, x, y)
            run.step(loss=loss)
            course["last"].append(loss.item())
            course["best"] += loss.detach()
        for x, y in run.loop(drawing):
            run.step(loss=learn(model, optimizer, x, y))


class Augmented(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Draws from three generators for every sample."""

    def __init__(self) -> None:
        self.x, self.y = samples().tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scale = random.random() + np.random.rand() + float(torch.rand(()))
        return self.x[index] * scale, self.y[index]


def augmented() -> None:
    model, optimizer, _ = training()
    run = walrecover.attach(model=model, optimizer=optimizer)
    loader = DataLoader(Augmented(), 4, shuffle=True)
    for _ in run.loop(range(2)):
        for x, y in run.loop(loader):
            run.step(loss=learn(model, optimizer, x, y))


def second_order() -> None:
    """LBFGS calls its closure several times a step."""
    seed()
    model = nn.Linear(4, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, history_size=3)
    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in run.loop(range(2)):
        for x, y in run.loop(batches()):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            run.step(loss=optimizer.step(closure))


def scaled() -> None:
    """GradScaler skips a step whose gradients overflow; it counts."""
    model, optimizer, _ = training()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
    run = walrecover.attach(model=model, optimizer=optimizer, scaler=scaler)
    for _ in run.loop(range(2)):
        for n, (x, y) in run.enumerate(batches()):
            loss = loss_of(model, x, y) * (float("inf") if n == 2 else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            run.step(loss=loss)


def half_precision() -> None:
    """bf16 parameters whose optimizer keeps fp32 state."""
    seed()
    model = nn.Linear(4, 2).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros(parameter.shape),
            "exp_avg_sq": torch.zeros(parameter.shape),
        }
    run = walrecover.attach(model=model, optimizer=optimizer)
    for _ in run.loop(range(2)):
        for x, y in run.loop(batches()):
            loss = cross_entropy(model(x.bfloat16()), y)
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    state = optimizer.state[p]
                    state["exp_avg"].mul_(0.9).add_(p.grad.float(), alpha=0.1)
                    p.sub_((0.3 * state["exp_avg"]).bfloat16())
            run.step(loss=loss)


def channels_last() -> None:
    seed()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = walrecover.attach(model=model, optimizer=optimizer, average=average)
    for _ in run.loop(range(8)):
        x = torch.randn(4, 3, 4, 4).to(memory_format=torch.channels_last)
        run.step(loss=learn(model, optimizer, x, torch.tensor([0, 1, 0, 1])))
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 0.1)
