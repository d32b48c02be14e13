"""An unchanged script of torch: saves and resumes by itself, and is killed on its way. After a save
it waits until that is kept, as a step of real length would."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

PLACE = Path("out/model.pt")
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
step = 0
if PLACE.exists():
    state = torch.load(PLACE)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
PLACE.parent.mkdir(exist_ok=True)
KEPT = Path(".walrecover/runs/run/adopted/records")
began, last = step, int(sys.argv[1])
while step < last:
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    step += 1
    if step % 5 == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        before = len(list(KEPT.glob("*.json")))
        torch.save(state, PLACE)
        while len(list(KEPT.glob("*.json"))) == before:
            time.sleep(0.01)
    if step == began + 8 and step < last:
        os.kill(os.getpid(), signal.SIGKILL)
print("trained", step)
