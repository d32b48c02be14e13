"""examples/char_gpt.py's four lines. Under `walrecover run`, which sets the pace."""

from task import arguments, ended, loss_of, model_of, nn, optimizer_of, told, windows_of
from torch.utils.data import DataLoader

import walrecover

args = arguments()
model = model_of(args)
loader = DataLoader(windows_of(args), args.batch_size, shuffle=True)
optimizer, scheduler = optimizer_of(model, args.total)
run = walrecover.attach(model=model, optimizer=optimizer, scheduler=scheduler)
for _ in run.loop(range(args.total // args.steps_per_epoch)):
    for x, y, numbers in run.loop(loader):
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        run.step(loss=loss)
        told(run.global_step, numbers, loss)
ended(model)
