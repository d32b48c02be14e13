"""ravex: its decorator around the plain loop. The step is the scheduler's, which it restores."""

import ravex
from task import arguments, ended, loss_of, model_of, nn, optimizer_of, told, windows_of
from torch.utils.data import DataLoader

args = arguments()


@ravex.train_loop(
    checkpoint_every=args.every,
    backend="moonclip",
    delta=False,  # else a delta is taken at every step
    storage={"type": "local", "path": str(args.folder / "ravex")},
    keep_last=2,
)
def train() -> None:
    model = model_of(args)
    loader = DataLoader(windows_of(args), args.batch_size, shuffle=True)
    optimizer, scheduler = optimizer_of(model, args.total)
    while scheduler.last_epoch < args.total:
        for x, y, numbers in loader:
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            told(scheduler.last_epoch, numbers, loss)
    ended(model)


train()
